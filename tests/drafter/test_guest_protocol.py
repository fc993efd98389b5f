"""The guest channel's codec: round trips in any pieces, rests of other sessions skipped, nonsense refused, layouts as in C."""

from __future__ import annotations

import re
import struct
import subprocess
import zlib
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from architect.drafter import guest_payloads, guest_protocol
from architect.drafter.guest_payloads import (
    GuestConfig,
    TerminalSize,
    pack_configure,
    pack_process,
    signal_number,
    unpack_ready,
)
from architect.drafter.guest_protocol import (
    HEADER,
    PAYLOAD_BYTES_MAX,
    RESET_PADDING,
    FrameDecoder,
    FrameType,
    GuestFrame,
    GuestProtocolError,
    encode_frame,
)
from architect.errors import UsageError
from architect.model.image import ProcessConfig

SESSION = 0xABCD1234
INIT = Path(__file__).parents[2] / "architect" / "artifacts" / "init"

frames = st.builds(
    GuestFrame,
    type=st.sampled_from(FrameType),
    payload=st.binary(max_size=300),
    stream=st.integers(0, 2**32 - 1),
    seq=st.integers(0, 2**64 - 1),
    flags=st.integers(0, 255),
)


def decoder() -> FrameDecoder:
    return FrameDecoder(SESSION, "VM test")


def feed_in_pieces(target: FrameDecoder, data: bytes, cuts: list[int]) -> list[GuestFrame]:
    points = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [frame for start, end in pairwise(points) for frame in target.feed(data[start:end])]


@given(st.lists(frames, max_size=5), st.lists(st.integers(0, 5000), max_size=6))
def test_frames_come_out_as_they_went_in_however_the_bytes_are_cut(sent: list[GuestFrame], cuts: list[int]) -> None:
    data = b"".join(encode_frame(frame, SESSION) for frame in sent)
    assert feed_in_pieces(decoder(), data, cuts) == sent


@given(st.binary(max_size=2000), frames, st.lists(st.integers(0, 5000), max_size=6))
def test_a_session_is_found_behind_any_rest_of_another(rest: bytes, frame: GuestFrame, cuts: list[int]) -> None:
    stale = encode_frame(frame, SESSION ^ 1)
    data = stale[7:] + rest + stale + encode_frame(frame, SESSION)
    assert feed_in_pieces(decoder(), data, cuts) == [frame]


@given(st.binary(max_size=200_000))
def test_garbage_is_skipped_without_an_error_or_a_frame(data: bytes) -> None:
    assert decoder().feed(data) == []


@given(frames, st.integers(0, 10_000), st.integers(1, 255))
def test_a_damaged_frame_within_a_session_is_refused_or_waited_for(frame: GuestFrame, position: int, change: int) -> None:
    target = decoder()
    assert target.feed(encode_frame(GuestFrame(FrameType.PONG), SESSION))
    data = bytearray(encode_frame(frame, SESSION))
    data[position % len(data)] ^= change
    try:
        assert target.feed(bytes(data)) == []
        assert target.feed(RESET_PADDING) == []
    except GuestProtocolError:
        return
    raise AssertionError("a damaged frame passed")


def test_a_length_over_the_bound_is_refused_before_anything_is_waited_for() -> None:
    target = decoder()
    target.feed(encode_frame(GuestFrame(FrameType.PONG), SESSION))
    with pytest.raises(GuestProtocolError):
        target.feed(HEADER.pack(guest_protocol.FRAME_MAGIC, PAYLOAD_BYTES_MAX + 1, SESSION, 66, 0, 0, 0, 0, 0))


def test_an_unknown_frame_type_is_refused() -> None:
    data = bytearray(encode_frame(GuestFrame(FrameType.PONG), SESSION))
    fields = list(HEADER.unpack(data))
    fields[3], fields[-1] = 200, 0
    fields[-1] = zlib.crc32(HEADER.pack(*fields))
    with pytest.raises(GuestProtocolError, match="unknown type 200"):
        decoder().feed(HEADER.pack(*fields))


def test_the_padding_completes_the_longest_frame() -> None:
    longest = encode_frame(GuestFrame(FrameType.EXEC_INPUT, bytes(PAYLOAD_BYTES_MAX)), SESSION)
    assert len(RESET_PADDING) >= len(longest) - 1


@given(st.binary(max_size=300))
def test_a_malformed_ready_is_refused_by_type(payload: bytes) -> None:
    try:
        ready = unpack_ready(GuestFrame(FrameType.READY, payload), "VM test")
    except GuestProtocolError:
        return
    assert len(payload) == guest_payloads.READY.size + 4 * len(ready.exec_ids)


@pytest.mark.parametrize(("name", "number"), [("SIGTERM", 15), ("term", 15), ("9", 9), ("", 15), ("SIGRTMIN+3", 37), ("64", 64)])
def test_stop_signals_are_read_as_images_write_them(name: str, number: int) -> None:
    assert signal_number(name) == number


@pytest.mark.parametrize("name", ["SIGNOTHING", "0", "65", "SIGRTMIN+40", "TERM+x", "-1"])
def test_a_signal_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        signal_number(name)


CONFIG = GuestConfig(host_name="web", address="10.1.0.2", mac="02:11:22:33:44:66", mtu=1320)


@pytest.mark.parametrize(
    "config",
    [
        GuestConfig(host_name="web", address="10.1.0.300", mac=CONFIG.mac, mtu=1320),
        GuestConfig(host_name="web", address="fe80::1", mac=CONFIG.mac, mtu=1320),
        GuestConfig(host_name="web", address="10.1.0.2", mac="02:11:22", mtu=1320),
        GuestConfig(host_name="wéb", address="10.1.0.2", mac=CONFIG.mac, mtu=1320),
        GuestConfig(host_name="w" * 65, address="10.1.0.2", mac=CONFIG.mac, mtu=1320),
        GuestConfig(host_name="web", address="10.1.0.2", mac=CONFIG.mac, mtu=1320, hosts=("x" * 70_000,)),
    ],
)
def test_a_configuration_that_cannot_be_sent_is_refused(config: GuestConfig) -> None:
    with pytest.raises(UsageError):
        pack_configure(config, 0, b"seed")


@pytest.mark.parametrize(
    "process",
    [
        ProcessConfig(args=()),
        ProcessConfig(args=("a\0b",)),
        ProcessConfig(args=("a",), uid=-1),
        ProcessConfig(args=("a",), env=("X=" + "y" * PAYLOAD_BYTES_MAX,)),
        ProcessConfig(args=("a",), groups=(2**32,)),
    ],
)
def test_a_process_that_cannot_be_sent_is_refused(process: ProcessConfig) -> None:
    with pytest.raises(UsageError):
        pack_process(process, None)


def test_a_terminal_out_of_range_is_refused() -> None:
    with pytest.raises(UsageError):
        pack_process(ProcessConfig(args=("a",)), TerminalSize(70_000, 80))


def _layout() -> dict[str, tuple[int, ...]]:
    if not INIT.exists():
        pytest.skip("architect/artifacts/init is not built: make -C native")
    output = subprocess.run((str(INIT), "--layout"), check=True, capture_output=True, text=True, timeout=10).stdout
    lines = (line.split() for line in output.splitlines())
    return {f"{kind} {name}": tuple(int(number) for number in numbers) for kind, name, *numbers in lines}


STRUCTS: dict[str, struct.Struct] = {
    "frame_header": HEADER,
    "hello_payload": guest_payloads.HELLO,
    "ready_payload": guest_payloads.READY,
    "configure_payload": guest_payloads.CONFIGURE,
    "process_payload": guest_payloads.PROCESS,
    "signal_payload": guest_payloads.SIGNAL,
    "clock_payload": guest_payloads.CLOCK,
    "hook_payload": guest_payloads.HOOK,
    "freeze_payload": guest_payloads.FREEZE,
    "resize_payload": guest_payloads.RESIZE,
    "attach_payload": guest_payloads.ATTACH,
    "input_ack_payload": guest_payloads.INPUT_ACK,
    "answer_payload": guest_payloads.ANSWER,
    "pong_payload": guest_payloads.PONG,
    "log_payload": guest_payloads.LOG,
    "exit_payload": guest_payloads.EXIT,
}


def test_every_struct_has_the_same_fields_in_c_and_in_python() -> None:
    layout = _layout()
    assert {name.removeprefix("size ") for name in layout if name.startswith("size ")} == set(STRUCTS)
    for name, python in STRUCTS.items():
        assert layout[f"size {name}"] == (python.size,), name
        in_c = [numbers for key, numbers in layout.items() if key.startswith(f"offset {name}.")]
        in_python, offset = [], 0
        for code in re.findall(r"\d*[a-zA-Z]", python.format[1:]):
            in_python.append((offset, struct.calcsize(f"<{code}")))
            offset += in_python[-1][1]
        assert in_c == in_python, name


def test_every_constant_is_the_same_in_c_and_in_python() -> None:
    values = {name.removeprefix("value "): numbers[0] for name, numbers in _layout().items() if name.startswith("value ")}
    types = {name.removeprefix("FRAME_"): value for name, value in values.items() if name.startswith("FRAME_")}
    assert types.pop("MAGIC") == guest_protocol.FRAME_MAGIC
    assert types == {kind.name: kind.value for kind in FrameType}
    for name in ("PROTOCOL_VERSION", "PAYLOAD_BYTES_MAX", "RECORD_BYTES_MAX", "EXEC_INPUT_BYTES_MAX", "EXEC_SESSIONS_MAX"):
        assert values[name] == getattr(guest_protocol, name), name
    assert values["POSITION_OF_GUEST"] == guest_protocol.POSITION_OF_GUEST
    assert values["FLAG_END_OF_INPUT"] == guest_protocol.FLAG_END_OF_INPUT
