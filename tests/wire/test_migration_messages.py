"""The migration protocol's messages: round trip, and refusal of what is none."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from architect.model.handover_span import Side, Span
from architect.model.handover_state import HandoverState, MigrationMode
from architect.wire.framing import FrameCodec, FrameError
from architect.wire.migration_messages import (
    Abort,
    Accepted,
    Alive,
    AskClock,
    AskStatus,
    AwaitFilled,
    BasePart,
    ClockIs,
    Committed,
    Cut,
    Hold,
    LogPart,
    MigrationMessage,
    PeerHello,
    PeerWelcome,
    Prepare,
    Prepared,
    Release,
    Released,
    Start,
    Started,
    TargetStatus,
)
from tests.migration.handover_values import MIGRATION, facts, spec

MESSAGES: list[MigrationMessage] = [
    PeerHello(1, facts().name),
    PeerWelcome(1, facts().name),
    Prepare(MIGRATION, spec(), 3, facts(), MigrationMode.AUTO),
    Prepared(0, "10.0.0.1"),
    BasePart(MIGRATION, 0),
    Start(MIGRATION),
    Started("10.0.0.1", 7001, "aws-1.agent"),
    LogPart(MIGRATION, 5),
    Alive(MIGRATION),
    Hold(MIGRATION),
    Cut(MIGRATION, "ab", 100, 7, True, True, "cd"),
    Committed(4, 1.5, (Span("load", Side.TARGET, 7.0, 7.01),)),
    Released((Span("sync-clock", Side.GUEST, 7.1, 7.2, "greet"),)),
    AskClock(MIGRATION),
    ClockIs(12.5),
    AwaitFilled(MIGRATION),
    Release(MIGRATION),
    Abort(MIGRATION, "why"),
    AskStatus(MIGRATION),
    TargetStatus(HandoverState.DONE),
    Accepted(),
]


def codec() -> FrameCodec[MigrationMessage]:
    return FrameCodec(MigrationMessage, "peer")


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_message_comes_back_as_it_was(message: MigrationMessage) -> None:
    assert codec().decode(codec().encode(message)[8:]) == message


def test_every_kind_of_message_is_tested() -> None:
    assert {type(message) for message in MESSAGES} == set(get_args(MigrationMessage))


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_an_unknown_field_or_a_cut_off_message_is_refused(message: MigrationMessage) -> None:
    head = codec().encode(message)[8:]
    with pytest.raises(FrameError):
        codec().decode(head[:-1])
    fields = msgspec.msgpack.decode(head)
    with pytest.raises(FrameError):
        codec().decode(msgspec.msgpack.encode({**fields, "surprise": 1}))


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_garbage_is_refused_by_name(garbage: bytes) -> None:
    with pytest.raises(FrameError):
        codec().decode(garbage)
