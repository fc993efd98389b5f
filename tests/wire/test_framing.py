"""Frames: round trip, and refusal of garbage, truncated and oversized input."""

from __future__ import annotations

import threading

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from architect.wire.agent_messages import AgentMessage, Done, LogData, StopVm
from architect.wire.call import Envelope, Failure, Request
from architect.wire.framing import BODY_BYTES_MAX, HEAD_BYTES_MAX, PREFIX, FrameCodec, FrameError

CODEC: FrameCodec[AgentMessage] = FrameCodec(AgentMessage, "peer x")


@given(st.text(max_size=50), st.floats(0, 1e6), st.integers(0, BODY_BYTES_MAX))
def test_a_message_survives_the_round_trip(vm: str, grace_s: float, body_bytes: int) -> None:
    message = StopVm(vm, grace_s)  # type: ignore[arg-type]
    frame = CODEC.encode(message, body_bytes)
    head_bytes, seen_body_bytes = CODEC.lengths(frame[: PREFIX.size])
    assert seen_body_bytes == body_bytes
    assert head_bytes == len(frame) - PREFIX.size
    assert CODEC.decode(frame[PREFIX.size :]) == message


@given(st.binary(max_size=400))
def test_garbage_heads_are_refused_with_the_peer_named(head: bytes) -> None:
    try:
        message = CODEC.decode(head)
    except FrameError as error:
        assert error.thing == "peer x"
    else:
        assert CODEC.encode(message)[PREFIX.size :]


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_lengths_over_the_bounds_are_refused(head_bytes: int, body_bytes: int) -> None:
    prefix = PREFIX.pack(head_bytes, body_bytes)
    if 0 < head_bytes <= HEAD_BYTES_MAX and body_bytes <= BODY_BYTES_MAX:
        assert CODEC.lengths(prefix) == (head_bytes, body_bytes)
    else:
        with pytest.raises(FrameError):
            CODEC.lengths(prefix)


def test_unknown_fields_and_unknown_messages_are_refused() -> None:
    encode = msgspec.msgpack.encode
    for head in (encode({"type": "Done", "extra": 1}), encode({"type": "Nothing"}), encode({"type": "LogData"}), encode([1])):
        with pytest.raises(FrameError):
            CODEC.decode(head)
    assert CODEC.decode(encode({"type": "Done"})) == Done()
    assert CODEC.decode(encode({"type": "LogData", "offset": 3})) == LogData(3)


def test_a_truncated_head_is_refused_at_every_length() -> None:
    envelope: FrameCodec[Envelope] = FrameCodec(Envelope, "peer x")
    whole = envelope.encode(Request(7, msgspec.Raw(b"\x81\xa4type\xa4Done")))[PREFIX.size :]
    for length in range(len(whole)):
        with pytest.raises(FrameError):
            envelope.decode(whole[:length])
    failure = Failure(1, "conflict", "vm a", "moves", "wait")
    assert envelope.decode(envelope.encode(failure)[PREFIX.size :]) == failure


class _SlowToLearn(type):
    """A type that msgspec learns only when `is_told` is set; `is_asked`: it has begun."""

    is_asked = threading.Event()
    is_told = threading.Event()

    @property
    def __origin__(cls) -> object:
        if not cls.is_asked.is_set():
            cls.is_asked.set()
            assert cls.is_told.wait(20)
        raise AttributeError


class _Slow(metaclass=_SlowToLearn):
    """What a message has that is being learned."""


class _SlowMessage(msgspec.Struct, tag=True):
    number: int
    slow: _Slow | None = None


def test_a_codec_is_not_made_of_a_struct_that_another_thread_is_just_learning() -> None:
    """Two streams that open at once: with a half-known struct msgspec ends the whole memory process."""
    made = []

    def make() -> None:
        codec: FrameCodec[_SlowMessage] = FrameCodec(_SlowMessage, "peer x")
        made.append(codec.decode(codec.encode(_SlowMessage(7))[PREFIX.size :]))

    first, second = threading.Thread(target=make), threading.Thread(target=make)
    first.start()
    assert _SlowToLearn.is_asked.wait(20)
    second.start()
    second.join(0.2)
    assert made == [], "the second did not wait"
    _SlowToLearn.is_told.set()
    first.join()
    second.join()
    assert made == [_SlowMessage(7)] * 2
