"""How far a long benchmark is: known costs scaled by what was seen."""

from __future__ import annotations

import pytest

from bench.progress import Progress
from bench.results import Cell

CELLS = (Cell(256, 0), Cell(256, 0))


def test_nothing_is_foretold_before_anything_was_seen() -> None:
    progress = Progress(CELLS, 2, 100.0)
    assert progress.left_s(130.0) is None
    assert progress.text(130.0) == "run 0 of 4, 30 s gone"


def test_what_is_left_is_in_proportion_to_what_was_done() -> None:
    progress = Progress(CELLS, 2, 100.0)
    progress.run_done()
    progress.run_done()
    assert progress.left_s(160.0) == pytest.approx(60.0)
    assert progress.text(220.0) == "run 2 of 4, 2 min gone, about 2 min left"


def test_larger_cells_are_expected_to_take_longer() -> None:
    progress = Progress((Cell(256, 0), Cell(4096, 200)), 1, 0.0)
    progress.run_done()
    left_s = progress.left_s(10.0)
    assert left_s is not None and left_s > 50


def test_in_the_end_nothing_is_left() -> None:
    progress = Progress(CELLS[:1], 1, 0.0)
    progress.run_done()
    progress.run_done()
    assert progress.left_s(50.0) == 0
