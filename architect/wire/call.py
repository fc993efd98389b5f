"""The call envelope: requests, answers, errors and streams over one connection, in both directions.

Every RPC channel (control and agent, agent and edge, agent and memory process, agent and agent) carries these. `call` is chosen
by the side that asks and is unique among its open calls. A request is answered by any number of `Item`s (a stream, or progress)
and exactly one `Answer` or `Failure`. At most `ITEMS_IN_FLIGHT_MAX` items of a call are under way: the asker grants more with
`Credit` as it takes them, so that one slow reader does not hold up the connection's other calls. `Cancel` asks to stop a call;
it then ends in a Failure. `Note` is one-way. `value` is one message of the channel's own union, MessagePack-encoded and checked
by the channel's decoder; the frame's body belongs to it.
"""

from __future__ import annotations

import msgspec

from architect.errors import ArchitectError, described, remote_error

ITEMS_IN_FLIGHT_MAX = 256


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="request"):
    """Asks; answered by Answer or Failure with the same `call`."""

    call: int
    value: msgspec.Raw


class Item(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="item"):
    """A part of the answer, before its end."""

    call: int
    value: msgspec.Raw


class Credit(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="credit"):
    """The asker has taken `items` items: as many more may be sent."""

    call: int
    items: int


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="answer"):
    """The end of a call that went well."""

    call: int
    value: msgspec.Raw


class Failure(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="failure"):
    """The end of a call that failed."""

    call: int
    code: str
    thing: str
    cause: str
    next_step: str


class Cancel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="cancel"):
    """The asker wants the call to stop."""

    call: int


class Note(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="note"):
    """A one-way message."""

    value: msgspec.Raw


Envelope = Request | Item | Credit | Answer | Failure | Cancel | Note


def failure_of(call: int, error: BaseException) -> Failure:
    """The Failure that reports `error`, what is not ours as `described`."""
    told = described(error, "request")
    return Failure(call, told.code, told.thing, told.cause, told.next_step)


def error_of(failure: Failure) -> ArchitectError:
    """The error that a Failure reports."""
    return remote_error(failure.code, failure.thing, failure.cause, failure.next_step)
