"""RoundTrip: what is known of the way to the edge, from pings: the least, the jitter, and how long to wait after a steer.

After the edge has changed a VM's place, packets that it sent before still arrive at the old host for as long as one way takes.
The wait ("settle") has to be no shorter; a whole round trip plus the jitter seen plus a margin bounds it, and is short where
hosts are near. Values only; times in seconds.
"""

from __future__ import annotations

from collections import deque

SAMPLES_MAX = 16
MARGIN_S = 0.002
SETTLE_S_MAX = 0.5
SETTLE_S_UNKNOWN = 0.1


class RoundTrip:
    """The last `SAMPLES_MAX` round trips."""

    def __init__(self) -> None:
        self._samples: deque[float] = deque(maxlen=SAMPLES_MAX)

    def add(self, round_trip_s: float) -> None:
        """A ping's round trip."""
        self._samples.append(round_trip_s)

    @property
    def least_s(self) -> float | None:
        """The shortest of the last ones; None before the first."""
        return min(self._samples) if self._samples else None

    @property
    def jitter_s(self) -> float:
        """How much longer than the shortest they take, in the mean."""
        least_s = self.least_s
        return sum(sample - least_s for sample in self._samples) / len(self._samples) if least_s is not None else 0.0

    def settle_s(self) -> float:
        """How long after a steer the old host may still be sent packets."""
        least_s = self.least_s
        return SETTLE_S_UNKNOWN if least_s is None else min(least_s + 2 * self.jitter_s + MARGIN_S, SETTLE_S_MAX)
