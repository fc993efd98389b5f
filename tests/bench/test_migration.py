"""The migration benchmark's command line, and what it makes of the fabric's documents."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from architect.errors import HandoverError
from bench.architect_mover import move_of
from bench.guest_image import guest_words
from bench.main import main
from bench.migration_options import CELLS, FULL_CELLS, QUICK_CELLS, parse, turns
from bench.results import DEFAULT_ENGINES, Cell, Engine

DOCUMENT: dict[str, Any] = {
    "outcome": "done", "reason": "", "total_s": 1.5, "downtime_ms": 21.5, "bytes_sent": 4096, "mode": "precopy", "rounds": 3,
    "started_at": "2026-11-22T00:00:00.000Z", "phases": [{"name": "bulk", "start_s": 0.1, "end_s": 0.9}],
}  # fmt: skip


def test_the_default_is_a_subset_of_the_cells() -> None:
    options = parse([])
    assert (options.cells, options.runs, options.engines, options.resumes) == (CELLS, 3, DEFAULT_ENGINES, False)


def test_full_is_every_size_rate_and_disk_by_every_engine_and_goes_on_where_it_was() -> None:
    options = parse(["--full"])
    assert (options.cells, options.engines, options.resumes) == (FULL_CELLS, tuple(Engine), True)
    assert len(set(FULL_CELLS)) == 18
    assert {cell.memory_mib for cell in FULL_CELLS} == {256, 1024, 4096}
    assert {cell.dirty_mib_s for cell in FULL_CELLS} == {0, 20, 200}
    assert parse(["--full", "--cells", "256/0"]).cells == (Cell(256, 0),)


def test_cells_engines_and_runs_can_be_chosen() -> None:
    options = parse(["--cells", "512/0,256/200/5", "--engines", "qemu-multifd,architect", "--runs", "7", "--out", "x.json"])
    assert options.cells == (Cell(512, 0), Cell(256, 200, 5))
    assert options.engines == (Engine.MULTIFD, Engine.ARCHITECT)
    assert (options.runs, options.out) == (7, Path("x.json"))
    assert options.limits.downtime_limit_ms == 300
    assert parse(["--downtime-limit", "30"]).limits.downtime_limit_ms == 30


def test_quick_is_small_cells_once() -> None:
    options = parse(["--quick"])
    assert (options.cells, options.runs) == (QUICK_CELLS, 1)


@pytest.mark.parametrize(
    "words",
    [["--cells", "256"], ["--cells", "64/0"], ["--cells", "256/-1"], ["--cells", "256/0/x"], ["--engines", "xen"], ["--runs", "0"]],
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


def test_the_guest_writes_its_disk_only_where_the_cell_says_so() -> None:
    words = guest_words(Cell(256, 20, 5))
    at = words.index("--")
    assert words[:at] == guest_words(Cell(256, 20))
    assert words[at + 1] == "disk-verify"
    assert dict(zip(words[at + 2 :: 2], words[at + 3 :: 2], strict=True))["--rate-mib"] == "5"


def test_a_move_of_ours_is_what_the_command_line_says_of_it() -> None:
    move = move_of(DOCUMENT)
    assert (move.total_s, move.downtime_ms, move.bytes) == (1.5, 21.5, 4096)
    assert (move.phases[0].name, move.details["rounds"], move.resumed_at_s) == ("bulk", 3, None)


def test_the_resume_of_a_move_of_ours_is_in_seconds_since_1970() -> None:
    phases = [*DOCUMENT["phases"], {"name": "target-resume", "start_s": 1.0, "end_s": 1.25}]
    resumed_at_s = move_of(DOCUMENT | {"phases": phases}).resumed_at_s
    assert resumed_at_s == datetime(2026, 11, 22, 0, 0, 1, 250_000, UTC).timestamp()


def test_a_move_of_ours_that_failed_is_an_error_with_its_reason() -> None:
    with pytest.raises(HandoverError, match="the target is full"):
        move_of(DOCUMENT | {"outcome": "failed", "reason": "the target is full"})


def test_an_unknown_benchmark_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["speed"]) == 2
    assert "migration" in capsys.readouterr().err
