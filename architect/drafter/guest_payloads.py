"""The payloads of the guest channel's frames, packed and unpacked. Layouts as in native/init/protocol.h; a test compares them."""

from __future__ import annotations

import ipaddress
import signal
import struct

import msgspec

from architect.drafter.guest_protocol import EXEC_SESSIONS_MAX, PAYLOAD_BYTES_MAX, PROTOCOL_VERSION, GuestFrame, GuestProtocolError
from architect.errors import UsageError
from architect.model.image import ProcessConfig

GATEWAY_ADDRESS = "169.254.1.1"
GATEWAY_MAC = "02:00:00:00:00:01"
SEED_BYTES = 64
HOST_NAME_BYTES_MAX = 64

HELLO = struct.Struct("<IIQ")
READY = struct.Struct("<IIQQQII")
CONFIGURE = struct.Struct("<Q4s4s6s6sI")
PROCESS = struct.Struct("<IIHHHHHH")
SIGNAL = struct.Struct("<I")
CLOCK = struct.Struct("<q")
HOOK = struct.Struct("<II")
FREEZE = struct.Struct("<II")
RESIZE = struct.Struct("<HH")
ATTACH = struct.Struct("<Q")
INPUT_ACK = struct.Struct("<Q")
ANSWER = struct.Struct("<I")
PONG = struct.Struct("<QQq")
LOG = struct.Struct("<Q")
EXIT = struct.Struct("<I")
_COUNT = struct.Struct("<I")


class GuestConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What makes a booted guest this VM. `hosts` are extra lines of /etc/hosts; an empty `machine_id` leaves the image's alone."""

    host_name: str
    address: str
    mac: str
    mtu: int
    dns: tuple[str, ...] = ()
    gateway: str = GATEWAY_ADDRESS
    gateway_mac: str = GATEWAY_MAC
    hosts: tuple[str, ...] = ()
    machine_id: str = ""


class TerminalSize(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rows and columns of a terminal."""

    rows: int = 24
    columns: int = 80


class GuestReady(msgspec.Struct, frozen=True):
    """What a guest says of itself when a session begins."""

    version: int
    state: int
    log_acked: int
    log_next: int
    uptime_ns: int
    exit_code: int
    exec_ids: tuple[int, ...]


class Pong(msgspec.Struct, frozen=True):
    """The guest's clocks, and what of an adjustment it has not made yet."""

    realtime_ns: int
    monotonic_ns: int
    slewing_ns: int


def pack_hello(log_position: int) -> bytes:
    """HELLO: the version and the last log record that this side has."""
    return HELLO.pack(PROTOCOL_VERSION, 0, log_position)


def pack_configure(config: GuestConfig, realtime_ns: int, seed: bytes) -> bytes:
    """CONFIGURE.

    Raises:
        UsageError: an address, MAC or name that is none.
    """
    try:
        address = ipaddress.IPv4Address(config.address).packed
        gateway = ipaddress.IPv4Address(config.gateway).packed
        mac, gateway_mac = (_mac_bytes(text) for text in (config.mac, config.gateway_mac))
        host_name = config.host_name.encode("ascii")
    except ValueError as error:
        raise UsageError(f"VM {config.host_name}", f"its network settings are malformed ({error})", "correct them") from error
    if len(host_name) > HOST_NAME_BYTES_MAX:
        raise UsageError(f"VM {config.host_name}", f"its name is longer than {HOST_NAME_BYTES_MAX} bytes", "choose a shorter one")
    texts = (host_name, config.machine_id.encode(), _hosts_file(config).encode(), _resolv_conf(config).encode(), seed)
    fixed = CONFIGURE.pack(realtime_ns, address, gateway, mac, gateway_mac, config.mtu)
    return _bounded(fixed + b"".join(_text(text) for text in texts), f"VM {config.host_name}", "configuration")


def pack_process(process: ProcessConfig, terminal: TerminalSize | None) -> bytes:
    """START and EXEC_START.

    Raises:
        UsageError: no arguments, a NUL in a text, or more of them than a frame holds.
    """
    thing = f"command {process.args[0] if process.args else ''!r}"
    texts = (process.cwd or "/", *process.args, *process.env)
    if not process.args or any("\0" in text for text in texts):
        raise UsageError(thing, "is empty or contains a NUL", "give a command that can be executed")
    size = terminal or TerminalSize()
    try:
        fixed = PROCESS.pack(
            *(process.uid, process.gid, len(process.groups), len(process.args), len(process.env)),
            *(terminal is not None, size.rows, size.columns),
        )
        groups = b"".join(_COUNT.pack(group) for group in process.groups)
    except struct.error as error:
        raise UsageError(thing, f"has a number out of its range ({error})", "correct user, groups or terminal size") from error
    encoded = b"".join(_text(text.encode(errors="surrogateescape")) for text in texts)
    return _bounded(fixed + groups + encoded, thing, "arguments and environment")


def signal_number(name: str) -> int:
    """The number of an OCI stop signal: ``SIGTERM``, ``TERM``, ``15``, ``SIGRTMIN+3``; empty is SIGTERM.

    Raises:
        UsageError: there is no such signal.
    """
    text = name.strip().upper().removeprefix("SIG") or "TERM"
    base, plus, offset = text.partition("+")
    try:
        number = int(text) if text.isdigit() else int(signal.Signals[f"SIG{base}"]) + (int(offset) if plus else 0)
    except (KeyError, ValueError) as error:
        raise UsageError(f"signal {name!r}", "is not known", "name it as in SIGTERM") from error
    if not 1 <= number <= int(signal.SIGRTMAX):
        raise UsageError(f"signal {name!r}", "is out of range", "name it as in SIGTERM")
    return number


def unpack(layout: struct.Struct, frame: GuestFrame, guest: str) -> tuple[int, ...]:
    """The fixed part of a frame's payload.

    Raises:
        GuestProtocolError: it is too short.
    """
    if len(frame.payload) < layout.size:
        raise GuestProtocolError(guest, f"sent a {frame.type.name} of {len(frame.payload)} bytes", "check its initramfs")
    return layout.unpack_from(frame.payload)


def unpack_ready(frame: GuestFrame, guest: str) -> GuestReady:
    """READY.

    Raises:
        GuestProtocolError: it is malformed.
    """
    version, state, log_acked, log_next, uptime_ns, exit_code, count = unpack(READY, frame, guest)
    if count > EXEC_SESSIONS_MAX or len(frame.payload) != READY.size + count * _COUNT.size:
        raise GuestProtocolError(guest, f"sent a READY of {len(frame.payload)} bytes", "check its initramfs")
    ids = struct.unpack_from(f"<{count}I", frame.payload, READY.size)
    return GuestReady(version, state, log_acked, log_next, uptime_ns, exit_code, ids)


def _text(data: bytes) -> bytes:
    return _COUNT.pack(len(data)) + data


def _bounded(payload: bytes, thing: str, what: str) -> bytes:
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise UsageError(thing, f"its {what} of {len(payload)} bytes exceed {PAYLOAD_BYTES_MAX}", "shorten them")
    return payload


def _mac_bytes(text: str) -> bytes:
    data = bytes.fromhex(text.replace(":", ""))
    if len(data) != 6:
        raise ValueError(f"{text!r} is no MAC address")
    return data


def _hosts_file(config: GuestConfig) -> str:
    lines = (
        "127.0.0.1\tlocalhost",
        "::1\tlocalhost ip6-localhost ip6-loopback",
        f"{config.address}\t{config.host_name}",
        *config.hosts,
    )
    return "".join(f"{line}\n" for line in lines)


def _resolv_conf(config: GuestConfig) -> str:
    return "".join(f"nameserver {server}\n" for server in config.dns)
