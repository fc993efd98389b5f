"""A deadline of a cloud, bound to our monotonic clock at the moment we hear of it.

The cloud says a time of day by its clock. How long that is from now is told by its own `Date` where ours is clearly another; from
then on only the monotonic clock counts. The same sighting gives the same notice for ever.
"""

from __future__ import annotations

from architect.clouds.notice_source import Reading, Sighting
from architect.model.notice import Notice
from architect.model.times import rfc3339
from architect.runtime.clock import Clock

SKEW_S_MAX = 2.0


class DeadlineBinding:
    """The notice that stands and its deadline; nothing stands at first."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._sighting: Sighting | None = None
        self._notice: Notice | None = None
        self._deadline_monotonic_s = 0.0

    @property
    def notice(self) -> Notice | None:
        """The notice that stands."""
        return self._notice

    def remaining_s(self) -> float | None:
        """Seconds left; None without a notice."""
        if self._notice is None:
            return None
        return max(0.0, self._deadline_monotonic_s - self._clock.monotonic_s())

    def receive(self, reading: Reading) -> bool:
        """Take in a reading; True if it changed the notice."""
        sighting = reading.sighting
        if sighting is None:
            changed = self._notice is not None
            self._sighting, self._notice = None, None
            return changed
        before = self._sighting
        is_same = before is not None and (before.id, before.kind) == (sighting.id, sighting.kind)
        # A deadline that is no longer told (an event that has started) is the one that was told.
        if is_same and before is not None and sighting.deadline_s in (None, before.deadline_s):
            return False
        remaining_s = self._remaining_s(sighting, reading.cloud_now_s)
        self._sighting = sighting
        self._deadline_monotonic_s = self._clock.monotonic_s() + remaining_s
        self._notice = Notice(sighting.id, sighting.kind, rfc3339(self._clock.wall_s() + remaining_s))
        return True

    def _remaining_s(self, sighting: Sighting, cloud_now_s: float | None) -> float:
        if sighting.deadline_s is None:
            return sighting.assumed_s
        now_s = self._clock.wall_s()
        if cloud_now_s is not None and abs(cloud_now_s - now_s) > SKEW_S_MAX:
            now_s = cloud_now_s
        return max(0.0, sighting.deadline_s - now_s)
