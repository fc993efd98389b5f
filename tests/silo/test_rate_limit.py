"""The rate limit: over any time no more than its rate and one burst, whoever sends."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from architect.silo.rate_limit import BURST_S, RateLimit

RATE = 1_000_000


class Clock:
    """Time that passes by sleeping only."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept: list[float] = []

    def now(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds


def _limit(clock: Clock, rate: int = RATE) -> RateLimit:
    return RateLimit(rate, clock.now, clock.sleep)


@given(st.lists(st.tuples(st.integers(0, 500_000), st.floats(0, 0.5), st.booleans()), max_size=40))
def test_between_any_two_moments_no_more_passes_than_the_rate_and_one_burst(steps: list[tuple[int, float, bool]]) -> None:
    clock, sent = Clock(), list[tuple[float, int]]()
    limit = _limit(clock)
    for size, idle_s, is_demanded in steps:
        clock.now_s += idle_s
        if is_demanded:
            limit.count(size)  # sent at once; what follows makes up for it
            continue
        limit.wait(size)
        sent.append((clock.now_s, size))
    for first in range(len(sent)):
        for last in range(first, len(sent)):
            passed = sum(size for _, size in sent[first + 1 : last + 1])
            assert passed <= RATE * (sent[last][0] - sent[first][0] + BURST_S) * (1 + 1e-6) + 1


def test_what_does_not_wait_is_made_up_for_by_what_does() -> None:
    clock = Clock()
    limit = _limit(clock)
    assert limit.count(2 * RATE) > 0
    assert clock.slept == []
    limit.wait(RATE)
    assert clock.now_s == pytest.approx(100.0 + 3.0 - BURST_S)


def test_one_who_sends_all_the_time_gets_the_whole_rate() -> None:
    clock = Clock()
    limit = _limit(clock)
    for _ in range(1000):
        limit.wait(RATE // 100)
    assert clock.now_s == pytest.approx(100.0 + 10.0 - BURST_S)


def test_idle_time_is_not_saved_up_beyond_a_burst() -> None:
    clock = Clock()
    limit = _limit(clock)
    limit.wait(1)
    clock.now_s += 3600
    limit.wait(RATE)
    assert sum(clock.slept) == pytest.approx(1.0 - BURST_S)


def test_no_limit_lets_everything_pass() -> None:
    clock = Clock()
    _limit(clock, 0).wait(1 << 60)
    assert clock.slept == []


def test_threads_share_it() -> None:
    clock, delays = Clock(), list[float]()
    limit = RateLimit(RATE, clock.now, delays.append)
    threads = [threading.Thread(target=limit.wait, args=(RATE,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(delays) == pytest.approx([1 - BURST_S, 2 - BURST_S, 3 - BURST_S, 4 - BURST_S])


def test_a_limit_that_is_lifted_lets_those_go_on_who_wait_for_it() -> None:
    limit = RateLimit(1)
    waiting = threading.Thread(target=limit.wait, args=(1 << 30,), daemon=True)
    waiting.start()
    while limit.count(0) <= 0:  # until it waits: what comes now would be too early
        pass
    limit.change(0)
    waiting.join(30.0)
    assert not waiting.is_alive() and limit.count(1 << 30) == 0


def test_a_changed_limit_owes_nothing_for_the_one_before() -> None:
    clock = Clock()
    limit = _limit(clock)
    limit.count(100 * RATE)
    limit.change(2 * RATE)
    assert limit.count(2 * RATE) == pytest.approx(1 - BURST_S)
