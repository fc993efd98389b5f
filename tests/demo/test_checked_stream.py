"""The demo's stream engine: two ends agree, and nothing that goes wrong passes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demo.checked_stream import HEADER, HELLO, CheckedStream, StreamBrokenError, format_hello, parse_hello, stream_data

seeds = st.integers(0, (1 << 64) - 1)


def ends(seed: int = 7) -> tuple[CheckedStream, CheckedStream]:
    return CheckedStream("a", seed, is_connector=True), CheckedStream("b", seed, is_connector=False)


@settings(deadline=None)
@given(seed=seeds, offset=st.integers(0, 1 << 40), length=st.integers(0, 200), cut=st.integers(0, 200))
def test_data_is_the_same_however_it_is_cut(seed: int, offset: int, length: int, cut: int) -> None:
    cut = min(cut, length)
    whole = stream_data(seed, offset, length)
    assert whole == stream_data(seed, offset, cut) + stream_data(seed, offset + cut, length - cut)


def test_data_is_splitmix64_as_the_service_has_it() -> None:
    # First outputs of splitmix64 from seed 0, as published with the algorithm.
    assert stream_data(0, 0, 16) == 0xE220A8397B1DCDAF.to_bytes(8, "little") + 0x6E789E6AA1B965F4.to_bytes(8, "little")


@settings(deadline=None)
@given(lengths=st.lists(st.integers(0, 3000), max_size=6), cuts=st.lists(st.integers(1, 4000), max_size=10))
def test_two_ends_agree_however_the_bytes_arrive(lengths: list[int], cuts: list[int]) -> None:
    sender, receiver = ends()
    wire = b"".join(sender.data_frame(length, 0) for length in lengths) + sender.end_frame(0)
    frames = 0
    for cut in cuts:
        frames += receiver.receive(wire[:cut])
        wire = wire[cut:]
    frames += receiver.receive(wire)
    assert frames == len(lengths) + 1 and receiver.has_ended
    assert (receiver.verified, receiver.verified_sha256) == (sender.sent, sender.sent_sha256)
    sender.receive(receiver.data_frame(10, 0))
    assert sender.confirmed == sender.sent
    receiver.close()


@settings(deadline=None)
@given(position=st.integers(0, HEADER.size + 499), bit=st.integers(0, 7))
def test_any_changed_bit_is_found_or_harmless(position: int, bit: int) -> None:
    sender, receiver = ends()
    wire = bytearray(sender.data_frame(500, 12345))
    wire[position] ^= 1 << bit
    if 24 <= position < HEADER.size:
        assert receiver.receive(bytes(wire)) == 1  # the sender's clock, which is nobody's data
        return
    with pytest.raises(StreamBrokenError):
        receiver.receive(bytes(wire) + bytes(70000))


def test_a_wrong_byte_is_named_by_its_place() -> None:
    sender, receiver = ends()
    receiver.receive(sender.data_frame(100, 0))
    wire = bytearray(sender.data_frame(100, 0))
    wire[HEADER.size + 42] ^= 1
    with pytest.raises(StreamBrokenError, match="at byte 142") as caught:
        receiver.receive(bytes(wire))
    assert caught.value.offset == 142


@pytest.mark.parametrize("order", [(1,), (0, 0), (0, 2)])
def test_lost_doubled_and_reordered_frames_are_found(order: tuple[int, ...]) -> None:
    sender, receiver = ends()
    frames = [sender.data_frame(100, 0) for _ in range(3)]
    with pytest.raises(StreamBrokenError, match="a frame of byte"):
        receiver.receive(b"".join(frames[index] for index in order))


def test_an_end_too_early_is_found() -> None:
    sender, receiver = ends()
    receiver.receive(sender.data_frame(10, 0))
    with pytest.raises(StreamBrokenError, match="was closed"):
        receiver.close()


def test_a_wrong_hash_is_found() -> None:
    sender, receiver = ends()
    wire = bytearray(sender.end_frame(0))
    wire[-1] ^= 1
    with pytest.raises(StreamBrokenError, match="wrong hash"):
        receiver.receive(bytes(wire))


def test_what_the_peer_found_wrong_is_told() -> None:
    sender, _ = ends()
    sender.data_frame(100, 0)
    with pytest.raises(StreamBrokenError, match="found our data wrong at byte 60"):
        sender.receive(HEADER.pack(3, 0, 0, 60, 0))


def test_a_peer_cannot_confirm_what_was_not_sent() -> None:
    sender, _ = ends()
    with pytest.raises(StreamBrokenError):
        sender.receive(HEADER.pack(1, 0, 0, 1, 0))


@settings(deadline=None)
@given(st.binary(min_size=HELLO.size, max_size=HELLO.size))
def test_a_hello_is_one_or_refused(data: bytes) -> None:
    with pytest.raises(StreamBrokenError):
        parse_hello(data)


@settings(deadline=None)
@given(seed=seeds, rate=st.integers(0, 1 << 32))
def test_a_hello_round_trips(seed: int, rate: int) -> None:
    assert parse_hello(format_hello(seed, rate)) == (seed, rate)
