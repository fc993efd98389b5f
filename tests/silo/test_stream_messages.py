"""The stream's messages: round trip, bounds, refusal of garbage."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from architect.silo.page_runs import LIST_BYTES_MAX
from architect.silo.stream_messages import (
    Ack,
    Barrier,
    Hello,
    Hurry,
    Lacking,
    Missing,
    PackedPages,
    Pages,
    Promise,
    Proved,
    Refused,
    StreamMessage,
    TunnelHello,
    TunnelTaken,
    Want,
    Welcome,
    Zeros,
)  # fmt: skip
from architect.wire.framing import PREFIX, FrameCodec, FrameError

MESSAGES: list[StreamMessage] = [
    Hello(1, "secret", "data", 3, 65536, True), TunnelHello("disk", 7, True), TunnelTaken(), Welcome(), Refused("no"),
    Pages(b"\1\0\0\0\1\0\0\0", bytes(32)), PackedPages(b"", bytes(32), "zstd"), Zeros(b""),
    Missing(b"x" * LIST_BYTES_MAX, True), Lacking(b"", False), Barrier(1), Hurry(),
    Ack(1), Want(b""), Promise("ab"), Proved("ab", True),
]  # fmt: skip


def _codec() -> FrameCodec[StreamMessage]:
    return FrameCodec(StreamMessage, "peer")


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_survives_the_wire(message: StreamMessage) -> None:
    assert _codec().decode(_codec().encode(message)[PREFIX.size :]) == message


def test_every_message_of_the_union_is_tried() -> None:
    assert {type(message) for message in MESSAGES} == set(StreamMessage.__args__)


@pytest.mark.parametrize(
    "message",
    [
        Hello(1, "s" * 129, "data"), Hello(1, "s", "data", 64), Hello(1, "s", "data", 0, 1 << 32), Pages(b"", b"short"),
        Missing(b"x" * (LIST_BYTES_MAX + 1), True), TunnelHello("disk", -1, True), Promise("x" * 200),
    ],
)  # fmt: skip
def test_a_field_over_its_bound_is_refused(message: StreamMessage) -> None:
    with pytest.raises(FrameError):
        _codec().decode(_codec().encode(message)[PREFIX.size :])


@given(st.binary(max_size=300))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(FrameError):
        _codec().decode(data)
