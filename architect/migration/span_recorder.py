"""SpanRecorder: the spans of one side of a handover, on this host's monotonic clock, as they are performed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from architect.model.handover_span import SPANS_MAX, Side, Span
from architect.runtime.clock import Clock


class SpanRecorder:
    """Keeps the first `spans_max`; a move that undoes for hours must not grow for hours."""

    def __init__(self, clock: Clock, side: Side, spans_max: int = SPANS_MAX) -> None:
        self._clock = clock
        self._side = side
        self._spans_max = spans_max
        self._spans: list[Span] = []
        self._told_count = 0

    @property
    def spans(self) -> tuple[Span, ...]:
        """All, in the order in which they ended."""
        return tuple(self._spans)

    def news(self) -> tuple[Span, ...]:
        """Those that were not in an earlier answer of this method."""
        told, self._told_count = self._told_count, len(self._spans)
        return tuple(self._spans[told:])

    @contextlib.contextmanager
    def span(self, name: str, parent: str = "", side: Side | None = None) -> Iterator[None]:
        """Record the block, whatever its end. A part with the name of its parent is all of it, and is not recorded twice."""
        start_s = self._clock.monotonic_s()
        try:
            yield
        finally:
            if name != parent:
                self.add(name, start_s, self._clock.monotonic_s(), parent, side)

    def add(self, name: str, start_s: float, end_s: float, parent: str = "", side: Side | None = None) -> None:
        """Record what has been timed already."""
        self.extend((Span(name, side if side is not None else self._side, start_s, end_s, parent),))

    def extend(self, spans: Iterable[Span]) -> None:
        """Record what a part of this host has timed on the same clock."""
        for span in spans:
            if len(self._spans) < self._spans_max:
                self._spans.append(span)
