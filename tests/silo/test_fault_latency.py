"""The latency histogram."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from architect.silo.fault_latency import FaultLatency


@given(st.lists(st.floats(1e-6, 100), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99]))
def test_quantiles_are_exact_to_six_per_cent(durations: list[float], fraction: float) -> None:
    latency = FaultLatency()
    for duration in durations:
        latency.add(duration)
    below = sorted(durations)
    rank = next(i for i in range(len(below)) if i + 1 >= fraction * len(below))
    assert abs(latency.quantile_us(fraction) / (below[rank] * 1e6) - 1) < 0.06


def test_no_faults_have_no_latency_and_extremes_are_counted() -> None:
    latency = FaultLatency()
    assert latency.report().median_us == 0
    for duration in (0.0, 1e9):
        latency.add(duration)
    assert latency.report().count == 2
