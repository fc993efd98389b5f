"""Rows of the evacuation benchmark: medians over the runs, the longest gap of all, nothing from runs that failed."""

from __future__ import annotations

import argparse

import pytest

from bench.evacuate_many import Row, Run, parse, rows_of
from bench.gap_window import GapReport


def run(vms: int, total_s: float, *gaps_ms: float, error: str = "") -> Run:
    gaps = tuple(GapReport(gap, 100, 100, 0, 0.0) for gap in gaps_ms)
    return Run(vms, 1, 0.0, total_s, gaps, ({"memory_bytes": 128 << 20},), {}, (), error)


def test_a_row_has_the_medians_and_the_longest_gap() -> None:
    runs = [run(2, 5.0, 20.0, 40.0), run(2, 7.0, 30.0, 500.0), run(2, 99.0, 9999.0, error="stuck")]
    assert rows_of(runs) == (Row(2, 128, 6.0, 35.0, 500.0),)


def test_what_only_failed_has_no_row() -> None:
    assert rows_of([run(20, 1.0, 1.0, error="stuck")]) == ()


def test_numbers_of_vms_are_checked() -> None:
    assert parse(["--vms", "1,20"]).counts == (1, 20)
    with pytest.raises((SystemExit, argparse.ArgumentTypeError)):
        parse(["--vms", "0"])
