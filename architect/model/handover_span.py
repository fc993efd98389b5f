"""Spans: when each step of a move began and ended, at whatever party, on one clock.

A span is recorded on the clock of whoever performs the step. The move's source brings all of them onto its own clock, by offsets
that are measured (`runtime.clock_offset`), and counts from the start of the move: before it (a notice, the order) is negative.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, TypeAlias

import msgspec

SPAN_NAME_MAX = 40
SPANS_MAX = 256
GUEST_RUNS = "guest-runs"
"""The part of the target's `resume` in which the guest runs already, by QEMU's event, and QEMU's answer is awaited."""

_Name: TypeAlias = Annotated[str, msgspec.Meta(max_length=SPAN_NAME_MAX)]


class Side(StrEnum):
    """Who performed a step. A host's agent, QEMU and memory process are one side."""

    SOURCE = "source"
    TARGET = "target"
    CONTROL = "control"
    EDGE = "edge"
    GUEST = "guest"


class Span(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One step. `parent` is the name of the step of the same host that it is a part of; "" if it is none's."""

    name: _Name
    side: Side
    start_s: float
    end_s: float
    parent: _Name = ""

    def later(self, by_s: float) -> Span:
        """The same on a clock that shows `by_s` more."""
        return Span(self.name, self.side, self.start_s + by_s, self.end_s + by_s, self.parent)


Spans: TypeAlias = Annotated[tuple[Span, ...], msgspec.Meta(max_length=SPANS_MAX)]


class TimedAway(msgspec.Struct, frozen=True):
    """When another party did something, on the clock of whoever holds this: wrong by at most `error_s`."""

    start_s: float
    end_s: float
    error_s: float
