"""The time stamp counter's frequency."""

from __future__ import annotations

from architect.pvm.tsc import measure_tsc_khz


def test_the_frequency_is_one_that_a_cpu_has_and_is_measured_alike_twice() -> None:
    first, second = measure_tsc_khz(), measure_tsc_khz()
    assert 500_000 < first < 8_000_000
    assert abs(first - second) < first / 100
