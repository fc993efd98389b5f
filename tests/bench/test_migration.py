"""The migration benchmark's command line, and what it makes of the fabric's documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from architect.errors import HandoverError
from bench.architect_mover import move_of
from bench.guest_image import guest_words
from bench.main import main
from bench.migration import CELLS, QUICK_CELLS, parse, turns
from bench.results import Cell, Engine

DOCUMENT: dict[str, Any] = {
    "outcome": "done", "reason": "", "total_s": 1.5, "downtime_ms": 21.5, "bytes_sent": 4096, "mode": "precopy", "rounds": 3,
    "started_at": "2026-11-22T00:00:00.000Z", "phases": [{"name": "bulk", "start_s": 0.1, "end_s": 0.9}],
}  # fmt: skip


def test_the_default_is_all_cells_and_engines() -> None:
    options = parse([])
    assert (options.cells, options.runs, options.engines) == (CELLS, 3, tuple(Engine))


def test_cells_engines_and_runs_can_be_chosen() -> None:
    options = parse(["--cells", "512/0,256/200", "--engines", "qemu-multifd,architect", "--runs", "7", "--out", "x.json"])
    assert options.cells == (Cell(512, 0), Cell(256, 200))
    assert options.engines == (Engine.MULTIFD, Engine.ARCHITECT)
    assert (options.runs, options.out) == (7, Path("x.json"))
    assert options.limits.downtime_limit_ms == 300
    assert parse(["--downtime-limit", "30"]).limits.downtime_limit_ms == 30


def test_quick_is_one_small_cell_once() -> None:
    options = parse(["--quick"])
    assert (options.cells, options.runs) == (QUICK_CELLS, 1)


@pytest.mark.parametrize(
    "words", [["--cells", "256"], ["--cells", "64/0"], ["--cells", "256/-1"], ["--engines", "xen"], ["--runs", "0"]]
)
def test_a_command_line_that_means_nothing_is_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        parse(words)
    assert refused.value.code == 2


def test_the_engines_take_turns() -> None:
    options = parse(["--engines", "architect,qemu-precopy", "--runs", "2"])
    assert list(turns(options)) == [
        (1, Engine.ARCHITECT),
        (1, Engine.PRECOPY),
        (2, Engine.ARCHITECT),
        (2, Engine.PRECOPY),
    ]


def test_the_guest_leaves_memory_for_its_kernel() -> None:
    words = guest_words(Cell(256, 20))
    assert words[0] == "memory-verify"
    assert dict(zip(words[1::2], words[2::2], strict=True)) == {"--size-mib": "160", "--rate-mib": "20", "--sweep-mib": "4"}


def test_a_move_of_ours_is_what_the_command_line_says_of_it() -> None:
    move = move_of(DOCUMENT)
    assert (move.total_s, move.downtime_ms, move.bytes) == (1.5, 21.5, 4096)
    assert (move.phases[0].name, move.details["rounds"]) == ("bulk", 3)


def test_a_move_of_ours_that_failed_is_an_error_with_its_reason() -> None:
    with pytest.raises(HandoverError, match="the target is full"):
        move_of(DOCUMENT | {"outcome": "failed", "reason": "the target is full"})


def test_an_unknown_benchmark_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["speed"]) == 2
    assert "migration" in capsys.readouterr().err
