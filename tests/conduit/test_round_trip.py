"""How long to wait after a steer."""

from __future__ import annotations

import pytest

from architect.conduit.round_trip import MARGIN_S, SETTLE_S_MAX, SETTLE_S_UNKNOWN, RoundTrip


def test_nothing_measured_waits_the_cautious_time() -> None:
    assert RoundTrip().settle_s() == SETTLE_S_UNKNOWN


def test_steady_round_trips_wait_one_of_them_and_the_margin() -> None:
    trips = RoundTrip()
    for _ in range(5):
        trips.add(0.020)
    assert trips.least_s == 0.020
    assert trips.settle_s() == pytest.approx(0.020 + MARGIN_S)


def test_jitter_makes_the_wait_longer_and_never_longer_than_the_most() -> None:
    trips = RoundTrip()
    trips.add(0.010)
    trips.add(0.030)
    assert trips.jitter_s == pytest.approx(0.010)
    assert trips.settle_s() == pytest.approx(0.030 + MARGIN_S)
    trips.add(5.0)
    assert trips.settle_s() == SETTLE_S_MAX


def test_old_round_trips_are_forgotten() -> None:
    trips = RoundTrip()
    trips.add(0.001)
    for _ in range(16):
        trips.add(0.050)
    assert trips.least_s == 0.050
