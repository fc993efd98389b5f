"""Ending TCP connections that two idle ends still believe in, without knowing their sequence numbers.

After a VM was restored from an epoch its connections are not what its peers remember. The edge forgets them first, so that whatever
either end sends is answered with a reset that fits it (by the edge's kernel towards the peer, by the BPF program towards the VM).
An end that only listens would wait for ever: each gets one bare ACK with a number out of its window, in the other's name. TCP
answers that with its own ACK (RFC 9293, 3.10.7.4), and so runs into the reset.
"""

from __future__ import annotations

import socket
import struct

import msgspec

from architect.conduit.flow_aging import Connection
from architect.conduit.layout import TUNNEL_PORT
from architect.errors import HostError

PROBES_MAX = 4096
_IP = struct.Struct(">BBHHHBBH4s4s")
_TCP = struct.Struct(">HHIIBBHHH")
_ACK = 0x10
_GPE_IPV4 = bytes([0x0C, 0, 0, 1])


class ProbedVm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where probes for a VM's connections go. `public_ports`: public port by guest port, TCP."""

    vni: int
    inner_address: str
    public_address: str
    host: str
    public_ports: dict[int, int]


def bare_ack(source: str, source_port: int, target: str, target_port: int) -> bytes:
    """An IPv4 packet with a TCP segment that has nothing but an acknowledgement of nothing."""
    ends = socket.inet_aton(source) + socket.inet_aton(target)
    tcp = _TCP.pack(source_port, target_port, 0, 0, 5 << 4, _ACK, 0, 0, 0)
    tcp = tcp[:16] + struct.pack(">H", _checksum(ends + struct.pack(">HH", socket.IPPROTO_TCP, len(tcp)) + tcp)) + tcp[18:]
    ip = _IP.pack(0x45, 0, _IP.size + len(tcp), 0, 0x4000, 64, socket.IPPROTO_TCP, 0, ends[:4], ends[4:])
    return ip[:10] + struct.pack(">H", _checksum(ip)) + ip[12:] + tcp


def in_tunnel(vni: int, packet: bytes) -> bytes:
    """An inner packet with the tunnel's header, as payload of a UDP packet."""
    return _GPE_IPV4 + vni.to_bytes(3, "big") + b"\0" + packet


def probe_connections(vm: ProbedVm, connections: tuple[Connection, ...], underlay_address: str) -> int:
    """Send both ends of each connection (the last `PROBES_MAX`) a bare ACK; how many connections. Best effort: packets get lost.

    Raises:
        HostError: no raw socket here.
    """
    try:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as outside,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as tunnel,
        ):
            tunnel.bind((underlay_address, 0))
            for connection in connections[-PROBES_MAX:]:
                _probe(vm, connection, outside, tunnel)
    except OSError as error:
        raise HostError(
            f"flows of VM {vm.vni}", f"cannot be probed ({error})", "run as root; they end when either side sends"
        ) from error
    return min(len(connections), PROBES_MAX)


def _probe(vm: ProbedVm, connection: Connection, outside: socket.socket, tunnel: socket.socket) -> None:
    remote, remote_port, guest_port = connection.remote_address, connection.remote_port, connection.guest_port
    public_port = connection.public_port or vm.public_ports.get(guest_port, 0)
    if public_port and remote != vm.public_address:
        outside.sendto(bare_ack(vm.public_address, public_port, remote, remote_port), (remote, 0))
    if vm.host:
        tunnel.sendto(in_tunnel(vm.vni, bare_ack(remote, remote_port, vm.inner_address, guest_port)), (vm.host, TUNNEL_PORT))


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
