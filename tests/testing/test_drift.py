"""Leaks are found, slow or in one step; noise, a slow patch and a fall are not leaks."""

from __future__ import annotations

import random

import pytest

from architect.testing.drift import Slack, drift_of, mann_kendall_z

NONE = Slack()


def noise(count: int = 100, around: float = 100.0) -> list[float]:
    source = random.Random(7)
    return [around + source.uniform(-10, 10) for _ in range(count)]


def test_a_constant_figure_does_not_drift() -> None:
    assert not drift_of("fds", [12] * 100, 20, NONE).drifts


def test_noise_does_not_drift() -> None:
    assert not drift_of("gap", noise(), 20, Slack(share=0.05)).drifts


def test_one_file_more_every_ten_samples_is_found() -> None:
    found = drift_of("files", [100 + at // 10 for at in range(100)], 20, NONE)
    assert found.drifts
    assert (found.first, found.last) == (100.5, 108.5)


def test_a_step_is_found() -> None:
    assert drift_of("fds", [12] * 50 + [13] * 50, 20, NONE).drifts


def test_a_slow_rise_below_noise_is_found_by_its_length() -> None:
    assert drift_of("pss", [value + at * 0.4 for at, value in enumerate(noise())], 20, Slack(absolute=2)).drifts


def test_growth_within_the_slack_is_none() -> None:
    assert not drift_of("pss", [1000 + at for at in range(100)], 20, Slack(share=0.1)).drifts


def test_a_slow_patch_at_the_end_is_no_trend() -> None:
    assert not drift_of("gap", [*noise(60), *(value + 40 for value in noise(10)), *noise(30)], 20, NONE).drifts


def test_a_figure_that_falls_does_not_drift() -> None:
    assert not drift_of("fds", [100 - at for at in range(100)], 20, NONE).drifts
    assert mann_kendall_z([3, 2, 1]) < 0


def test_a_figure_that_swings_between_two_hosts_does_not_drift() -> None:
    assert not drift_of("fds", [12, 20] * 50, 20, NONE).drifts


def test_the_statistic_is_that_of_the_textbook() -> None:
    # S = 45, no ties: variance 10*9*25/18 = 125.
    assert mann_kendall_z(range(10)) == pytest.approx(44 / 125**0.5)
