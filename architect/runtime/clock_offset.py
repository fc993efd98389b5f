"""ClockOffset: how far another party's clock is from ours, from exchanges over a connection, and how wrong that can be.

We note our clock, ask for theirs, note ours again: theirs was read at some moment between the two, so that the middle is wrong by
at most half of the round trip (Cristian's algorithm; NTP does the same, RFC 5905 section 8). The exchange with the shortest round
trip counts. Clocks drift apart, slewed ones by up to 0.5 ms a second, so only the last `SAMPLES_MAX` are looked at.
"""

from __future__ import annotations

from collections import deque

SAMPLES_MAX = 16


class ClockOffset:
    """The last exchanges with one party."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque(maxlen=SAMPLES_MAX)

    def add(self, asked_at_s: float, theirs_s: float, answered_at_s: float) -> None:
        """An exchange: our clock when we asked, theirs, ours when the answer came."""
        round_trip_s = max(answered_at_s - asked_at_s, 0.0)
        self._samples.append((round_trip_s, theirs_s - (asked_at_s + answered_at_s) / 2))

    @property
    def is_known(self) -> bool:
        """Whether there was an exchange."""
        return bool(self._samples)

    @property
    def offset_s(self) -> float:
        """Theirs less ours; 0 before the first exchange."""
        return min(self._samples)[1] if self._samples else 0.0

    @property
    def error_s(self) -> float:
        """How wrong `offset_s` can be; infinite before the first exchange."""
        return min(self._samples)[0] / 2 if self._samples else float("inf")

    def ours(self, theirs_s: float) -> float:
        """Our clock when theirs showed `theirs_s`."""
        return theirs_s - self.offset_s
