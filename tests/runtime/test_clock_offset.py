"""How far another clock is from ours."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from architect.runtime.clock_offset import SAMPLES_MAX, ClockOffset

ways = st.lists(st.tuples(st.floats(0, 0.5), st.floats(0, 0.5)), min_size=1, max_size=3 * SAMPLES_MAX)


@given(ahead_s=st.floats(-1e6, 1e6), ways=ways)
def test_the_true_offset_is_within_the_bound_whatever_each_way_took(ahead_s: float, ways: list[tuple[float, float]]) -> None:
    offset, now_s = ClockOffset(), 1000.0
    for there_s, back_s in ways:
        offset.add(now_s, now_s + there_s + ahead_s, now_s + there_s + back_s)
        now_s += there_s + back_s
    assert abs(offset.offset_s - ahead_s) <= offset.error_s + 1e-6
    assert offset.ours(5.0 + ahead_s) - 5.0 <= offset.error_s + 1e-6


def test_the_quickest_exchange_counts() -> None:
    offset = ClockOffset()
    offset.add(0.0, 100.9, 1.0)
    offset.add(2.0, 102.001, 2.002)
    offset.add(3.0, 103.0, 3.4)
    assert (round(offset.offset_s, 6), round(offset.error_s, 6)) == (100.0, 0.001)


def test_old_exchanges_are_forgotten_because_clocks_drift() -> None:
    offset = ClockOffset()
    offset.add(0.0, 50.0, 0.0)
    for at_s in range(1, SAMPLES_MAX + 1):
        offset.add(at_s, at_s + 60.0, at_s + 0.01)
    assert offset.offset_s > 59


def test_before_the_first_exchange_nothing_is_known() -> None:
    offset = ClockOffset()
    assert not offset.is_known and offset.error_s == float("inf")
