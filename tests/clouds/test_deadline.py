"""A deadline is bound to the monotonic clock when it is heard of."""

from __future__ import annotations

import math

from architect.clouds.deadline import DeadlineBinding
from architect.clouds.notice_source import Reading, Sighting
from architect.model.notice import NoticeKind
from architect.model.times import parse_rfc3339


class SetClock:
    """Clocks that a test sets."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.wall_now_s = 1_800_000_000.0

    def monotonic_s(self) -> float:
        """What was set."""
        return self.now_s

    def wall_s(self) -> float:
        """What was set."""
        return self.wall_now_s

    async def sleep(self, duration_s: float) -> None:
        """At once."""
        self.now_s += duration_s


def sighting(name: str = "n", deadline_s: float | None = None, assumed_s: float = 30.0) -> Sighting:
    """A preemption."""
    return Sighting(name, NoticeKind.PREEMPTION, deadline_s, assumed_s)


def test_a_wall_clock_that_is_set_later_moves_no_deadline() -> None:
    clock = SetClock()
    binding = DeadlineBinding(clock)
    assert binding.receive(Reading(sighting(deadline_s=clock.wall_now_s + 120)))
    notice = binding.notice
    clock.wall_now_s += 3600
    clock.now_s += 20
    assert not binding.receive(Reading(sighting(deadline_s=clock.wall_now_s - 3600 + 120)))
    assert binding.notice == notice
    assert binding.remaining_s() == 100
    clock.now_s += 500
    assert binding.remaining_s() == 0


def test_a_wall_clock_that_is_wrong_from_the_start_is_set_right_by_the_clouds() -> None:
    clock = SetClock()
    binding = DeadlineBinding(clock)
    cloud_now_s = clock.wall_now_s + 900
    binding.receive(Reading(sighting(deadline_s=cloud_now_s + 60), cloud_now_s))
    assert binding.remaining_s() == 60
    assert binding.notice is not None
    assert math.isclose(parse_rfc3339(binding.notice.deadline), clock.wall_now_s + 60, abs_tol=0.01)


def test_a_date_header_of_whole_seconds_does_not_blur_a_clock_that_is_right() -> None:
    clock = SetClock()
    binding = DeadlineBinding(clock)
    binding.receive(Reading(sighting(deadline_s=clock.wall_now_s + 60), clock.wall_now_s - 0.9))
    assert binding.remaining_s() == 60


def test_a_deadline_that_is_not_told_runs_from_the_first_sighting() -> None:
    clock = SetClock()
    binding = DeadlineBinding(clock)
    assert binding.receive(Reading(sighting()))
    clock.now_s += 10
    assert not binding.receive(Reading(sighting()))
    assert binding.remaining_s() == 20


def test_a_deadline_that_is_no_longer_told_stays_and_one_that_changes_counts() -> None:
    clock = SetClock()
    binding = DeadlineBinding(clock)
    binding.receive(Reading(sighting(deadline_s=clock.wall_now_s + 60)))
    assert not binding.receive(Reading(sighting(assumed_s=0)))
    assert binding.remaining_s() == 60
    assert binding.receive(Reading(sighting(deadline_s=clock.wall_now_s + 40)))
    assert binding.remaining_s() == 40


def test_a_deadline_in_the_past_leaves_nothing_and_withdrawal_leaves_no_notice() -> None:
    clock = SetClock()
    binding = DeadlineBinding(clock)
    assert not binding.receive(Reading(None))
    binding.receive(Reading(sighting(deadline_s=1.0)))
    assert binding.remaining_s() == 0
    assert binding.receive(Reading(None))
    assert binding.notice is None and binding.remaining_s() is None
