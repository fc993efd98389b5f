"""What a link is said to carry: all of it likely and at best, the wire alone where nothing may fail."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from architect.migration.link_rate import SAMPLES_MAX, LinkSample, link_rate

samples = st.lists(
    st.builds(LinkSample, st.integers(0, 10**9), st.floats(0.01, 10.0), st.integers(0, 10**9)), min_size=1, max_size=SAMPLES_MAX
).map(tuple)


@given(samples)
def test_a_careful_rate_counts_on_no_compression(told: tuple[LinkSample, ...]) -> None:
    wire = tuple(LinkSample(sample.bytes, sample.duration_s) for sample in told)
    rate, plain = link_rate(told), link_rate(wire)
    assert rate.low == plain.low <= plain.likely <= rate.likely * (1 + 1e-9)
    assert rate.likely <= rate.high and plain.high <= rate.high


def test_what_compression_keeps_off_the_wire_is_carried_too() -> None:
    rate = link_rate((LinkSample(10_000_000, 1.0, 30_000_000),) * 3)
    assert (rate.low, rate.likely, rate.high) == pytest.approx((10e6, 40e6, 40e6))
