"""Part size: how much of a long transfer goes into one part, so that a part takes about as long on any link.

Each part has a cost of its own, so long ones are cheaper. On a slow or shared link they would be long in time, too, and something
always waits for the end of a part. What that is, say those who use this: frames of pages (`silo.source_session`), parts of a base
disk or a log (`migration.action_bounds`).
"""

from __future__ import annotations

import msgspec


class PartBounds(msgspec.Struct, frozen=True):
    """How long parts may be, in units of the user's, and what counts as quick and slow. `first` and `least` give way to `most`."""

    first: int
    least: int
    most: int
    quick_s: float
    slow_s: float


class PartSize:
    """`next` is the size of the next part."""

    def __init__(self, bounds: PartBounds) -> None:
        self._bounds = bounds
        self.next = min(bounds.first, bounds.most)

    def took(self, size: int, duration_s: float) -> None:
        """A part of that size has taken so long. A quick one that was shorter than it might have been, the last, tells nothing."""
        bounds = self._bounds
        if duration_s > bounds.slow_s:
            self.next = max(int(self.next * bounds.slow_s / duration_s), min(bounds.least, bounds.most))
        elif duration_s < bounds.quick_s and size == self.next:
            self.next = min(size * 2, bounds.most)
