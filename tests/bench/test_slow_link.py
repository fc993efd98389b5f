"""Rows of the benchmark of slow links: medians, and the time of each way beside that without compression of the same round."""

from __future__ import annotations

import argparse

import pytest

from bench.slow_link import Row, Run, parse, rows_of


def _run(link: int, way: str, number: int, total_s: float, sent: int, saved: int) -> Run:
    return Run(link, way, number, total_s, 50.0, sent << 20, saved << 20, "precopy", 1.0)


def test_a_row_compares_with_the_move_without_compression_of_the_same_round() -> None:
    runs = [
        _run(100, "auto", 1, 10.0, 100, 150), _run(100, "off", 1, 20.0, 250, 0),
        _run(100, "auto", 2, 12.0, 100, 150), _run(100, "off", 2, 40.0, 250, 0),
        _run(100, "auto", 3, 90.0, 100, 150),
    ]  # fmt: skip
    assert rows_of(runs) == (
        Row(100, "auto", 12.0, 50.0, 100.0, 2.5, 0.4),
        Row(100, "off", 30.0, 50.0, 250.0, 1.0, 1.0),
    )


def test_links_are_checked() -> None:
    assert parse(["--links", "50,0"]).links == (50, 0)
    with pytest.raises((SystemExit, argparse.ArgumentTypeError)):
        parse(["--links", "fast"])
