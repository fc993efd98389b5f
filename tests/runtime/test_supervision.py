"""A kept process is started again with a growing pause, and outlives its keeper."""

from __future__ import annotations

import asyncio

import pytest

from architect.errors import HostError
from architect.runtime.processes import ProcessIdentity
from architect.runtime.supervision import Backoff, KeptProcess, Running


class FakeProcess:
    """Lives as long as it is told to."""

    def __init__(self, pid: int, clock: FakeClock, lives_s: float, status: int | None = 1) -> None:
        self.identity = ProcessIdentity(pid, pid)
        self._clock = clock
        self._lives_s = lives_s
        self._status = status
        self.waiters = 0

    async def wait(self) -> int | None:
        """Its life passes at once; one of endless life never ends."""
        if self._lives_s == float("inf"):
            self.waiters += 1
            await asyncio.Event().wait()
        self._clock.now_s += self._lives_s
        return self._status


class FakeClock:
    """Remembers who slept how long."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.slept: list[float] = []

    def monotonic_s(self) -> float:
        """Virtual."""
        return self.now_s

    def wall_s(self) -> float:
        """Virtual."""
        return self.now_s

    async def sleep(self, duration_s: float) -> None:
        """At once."""
        self.slept.append(round(duration_s, 3))
        self.now_s += duration_s
        await asyncio.sleep(0)


def keep(lives: list[float | HostError], adopted: float | None = None) -> tuple[KeptProcess, FakeClock, list[int]]:
    """Run a keeper over processes that live that long, and stop it when the last of them, which does not end, runs."""
    clock = FakeClock()
    begun: list[int] = []
    running = asyncio.Event()

    async def start() -> Running:
        number = len(begun) + 1
        begun.append(number)
        if number > len(lives):
            running.set()
            return FakeProcess(number, clock, float("inf"))
        life = lives[number - 1]
        if isinstance(life, HostError):
            raise life
        return FakeProcess(number, clock, life)

    told: list[int] = []
    first = None if adopted is None else FakeProcess(99, clock, adopted)
    kept = KeptProcess("test", start, lambda process: told.append(process.pid), clock, adopted=first)

    async def run() -> None:
        task = asyncio.create_task(kept.run())
        async with asyncio.timeout(10):
            await running.wait()
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(run())
    return kept, clock, told


def test_pauses_double_up_to_a_bound() -> None:
    backoff = Backoff(first_s=0.1, most_s=5.0)
    assert [backoff.pause_s(failures) for failures in (0, 1, 2, 6, 1000)] == [0.1, 0.2, 0.4, 5.0, 5.0]


def test_short_lives_are_paused_for_ever_longer_and_a_long_one_makes_good() -> None:
    kept, clock, told = keep([1.0, 1.0, 1.0, 60.0, 1.0])
    assert clock.slept == [0.1, 0.2, 0.4, 0.1, 0.1]
    assert told == [1, 2, 3, 4, 5, 6]
    assert kept.failures == 1 and kept.last_end == "exited with status 1"


def test_a_process_that_cannot_start_is_tried_again() -> None:
    kept, clock, told = keep([HostError("it", "is missing", "install it"), HostError("it", "is missing", "install it")])
    assert clock.slept == [0.1, 0.2] and told == [3]
    assert "is missing" in kept.last_end


def test_a_start_that_cannot_be_recorded_is_a_start_all_the_same() -> None:
    clock = FakeClock()
    begun: list[int] = []

    async def start() -> Running:
        begun.append(1)
        return FakeProcess(1, clock, float("inf"))

    def full(process: ProcessIdentity) -> None:
        raise HostError("state folder", "no space left", "make room")

    async def run() -> None:
        kept = KeptProcess("test", start, full, clock)
        task = asyncio.create_task(kept.run())
        for _ in range(10):
            await asyncio.sleep(0)
        assert kept.identity == ProcessIdentity(1, 1)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(run())
    assert begun == [1] and clock.slept == []


def test_an_adopted_process_is_not_started_but_kept() -> None:
    _, clock, told = keep([], adopted=30.0)
    assert told == [1] and clock.slept == [0.1]


def test_a_cancelled_keeper_leaves_its_process_running_and_says_which() -> None:
    kept, _, _ = keep([])
    assert kept.running is not None and kept.identity == ProcessIdentity(1, 1)


@pytest.mark.parametrize("failures", range(5))
def test_a_pause_is_never_nothing(failures: int) -> None:
    assert Backoff().pause_s(failures) > 0
