"""Rows, ratios and aims of the migration benchmark: failures count, figures are of what went well."""

from __future__ import annotations

import msgspec
import pytest

from bench.comparison import after_resume_ms, aims_of, ratios_of, rows_of
from bench.gap_window import Silence
from bench.result_table import aims_text, table
from bench.results import Cell, Document, Engine, Gap, Limits, Machine, Move, Row, Run, Span, Written

SMALL, BIG = Cell(256, 20), Cell(1024, 0)


def run(engine: Engine, pause_ms: float | None, gap_ms: float = 10.0, cell: Cell = SMALL, number: int = 1) -> Run:
    move = None if pause_ms is None else Move(pause_ms / 10, pause_ms, int(pause_ms * 1000))
    error = "" if pause_ms is not None else "qemu-precopy: not done in 60 s; see"
    return Run(engine, cell, number, 0.0, 1.0, move, Gap(gap_ms, 1000, 3, 1.0), error, Written(19.5, 0.0))


def row_of(rows: tuple[Row, ...], engine: Engine, cell: Cell = SMALL) -> Row:
    (row,) = [row for row in rows if (row.engine, row.memory_mib, row.dirty_mib_s) == (engine, cell.memory_mib, cell.dirty_mib_s)]
    return row


def test_a_row_has_the_medians_and_the_worst_gap_of_its_cell_and_engine() -> None:
    runs = [run(Engine.PRECOPY, pause, gap) for pause, gap in ((10, 30), (50, 20), (20, 90))]
    row = row_of(rows_of([*runs, run(Engine.PRECOPY, 1000, cell=BIG)]), Engine.PRECOPY)
    assert (row.downtime_ms_p50, row.gap_ms_p50, row.gap_ms_max) == (20, 30, 90)
    assert (row.total_s, row.bytes, row.lost_p50, row.dirty_mib_s_seen) == (2, 20_000, 3, 19.5)
    assert (row.runs, row.failed) == (3, 0)


def test_a_run_that_failed_counts_and_gives_no_figures() -> None:
    runs = [run(Engine.PRECOPY, 10, 30), run(Engine.PRECOPY, None, 9000)]
    row = row_of(rows_of(runs), Engine.PRECOPY)
    assert (row.runs, row.failed, row.downtime_ms_p50, row.gap_ms_max) == (2, 1, 10, 30)


def test_where_no_run_went_well_the_row_says_so_and_nothing_else() -> None:
    row = row_of(rows_of([run(Engine.MULTIFD, None)]), Engine.MULTIFD)
    assert (row.runs, row.failed, row.total_s, row.gap_ms_max, row.bytes) == (1, 1, None, None, None)


def test_rows_come_by_cell_and_then_by_engine() -> None:
    runs = [run(Engine.MULTIFD, 1, cell=BIG), run(Engine.ARCHITECT, 1, cell=BIG), run(Engine.PRECOPY, 1)]
    assert [(row.memory_mib, row.engine) for row in rows_of(runs)] == [
        (1024, Engine.ARCHITECT),
        (1024, Engine.MULTIFD),
        (256, Engine.PRECOPY),
    ]


def test_a_ratio_is_ours_divided_by_theirs_in_the_same_cell() -> None:
    runs = [run(Engine.ARCHITECT, 10, 20), run(Engine.PRECOPY, 40, 25), run(Engine.PRECOPY, 1, cell=BIG)]
    (ratio,) = ratios_of(rows_of(runs))
    assert (ratio.engine, ratio.downtime, ratio.gap, ratio.total, ratio.bytes) == (Engine.PRECOPY, 0.25, 0.8, 0.25, 0.25)


def test_a_ratio_to_what_has_no_figure_is_none() -> None:
    (ratio,) = ratios_of(rows_of([run(Engine.ARCHITECT, 10), run(Engine.POSTCOPY, None)]))
    assert (ratio.downtime, ratio.gap, ratio.bytes) == (None, None, None)
    (ratio,) = ratios_of(rows_of([run(Engine.ARCHITECT, 10), run(Engine.POSTCOPY, 0)]))
    assert ratio.downtime is None


def test_the_table_has_a_line_for_every_row() -> None:
    rows = rows_of([run(Engine.ARCHITECT, 10), run(Engine.PRECOPY, None)])
    lines = table(rows, ratios_of(rows)).splitlines()
    assert "256" in lines[1] and "moved" in lines[1] and "shared" in lines[2]
    assert len(lines) == 3
    assert "architect" in lines[1] and "1/1" in lines[1]
    assert "qemu-precopy" in lines[2] and "0/1" in lines[2]


def test_the_document_keeps_every_run_and_names_its_fields() -> None:
    runs = (run(Engine.ARCHITECT, 10), run(Engine.PRECOPY, None))
    machine = Machine(2, 1 << 30, "6.18", "7.2.22", "tcg", 0.5)
    rows = rows_of(runs)
    text = msgspec.json.encode(Document(machine, Limits(), rows, ratios_of(rows), runs))
    document = msgspec.json.decode(text)
    assert set(document["rows"][0]) >= {
        "engine", "memory_mib", "dirty_mib_s", "runs", "total_s", "downtime_ms_p50", "gap_ms_p50", "gap_ms_max", "bytes",
        "disk_mib_s", "storage", "lost_p50", "lost_max", "dirty_mib_s_seen", "dirty_mib_s_moving", "phases_ms",
    }  # fmt: skip
    assert set(document["machine"]) == {"cores", "memory_bytes", "kernel", "qemu", "accelerator", "load", "commit"}
    assert document["limits"]["max_bandwidth_bytes_s"] > 10**10
    assert document["raw"][1]["error"].startswith("qemu-precopy")
    assert msgspec.json.decode(text, type=Document).raw == runs


def moved(engine: Engine, total_s: float, gap_ms: float, cell: Cell = SMALL) -> Run:
    phases = (Span("bulk", 0.0, total_s / 2), Span("pause", 0.6, 0.61), Span("pause", 0.7, 0.72))
    return Run(engine, cell, 1, 0.0, 1.0, Move(total_s, 10, 1000, phases), Gap(gap_ms, 1000, 0, 1.0))


def test_a_row_has_the_length_of_each_phase() -> None:
    row = row_of(rows_of([moved(Engine.ARCHITECT, 2.0, 30), moved(Engine.ARCHITECT, 4.0, 30)]), Engine.ARCHITECT)
    assert row.phases_ms == {"bulk": 1500, "pause": 30}


def test_qemu_shares_storage_where_the_guest_writes_no_disk_and_moves_it_where_it_does() -> None:
    rows = rows_of([moved(engine, 1, 1, cell) for engine in Engine for cell in (SMALL, Cell(256, 20, 5))])
    assert {(row.engine is Engine.ARCHITECT, row.disk_mib_s, row.storage) for row in rows} == {
        (True, 0, "moved"), (True, 5, "moved"), (False, 0, "shared"), (False, 5, "moved"),
    }  # fmt: skip


def test_an_aim_that_is_missed_has_our_profile_and_one_that_is_met_needs_none() -> None:
    runs = [moved(Engine.ARCHITECT, 2, 30), moved(Engine.PRECOPY, 1, 200), moved(Engine.MULTIFD, 3, 100)]
    aims = aims_of(rows_of(runs))
    assert [(aim.found, aim.is_met) for aim in aims] == [(30, True), (0.15, True), (0.3, False), (2, False)]
    assert [list(aim.profile) for aim in aims] == [[], [], ["bulk", "pause"], ["bulk", "pause"]]
    text = aims_text(aims)
    assert "gap at least 5 times smaller than qemu-multifd's: in 0 of 1 cells" in text
    assert "missed in 256/20/0: 2.0 (ms: bulk 1000, pause 30)" in text


def test_the_profile_of_a_gap_is_of_the_phases_in_it() -> None:
    phases = tuple(Span(name, 0.0, 0.1) for name in ("bulk", "hold", "pause", "target-resume", "destroy"))
    gap = Gap(150, 1000, 0, 1.0, (Silence(10.13, 150.0),))
    found = Run(Engine.ARCHITECT, SMALL, 1, 0.0, 1.0, Move(2, 10, 1000, phases, {}, 10.0), gap)
    (aim, *_) = aims_of(rows_of([found]))
    assert list(aim.profile) == ["after the resume", "hold", "pause", "target-resume"]


def test_an_aim_without_anything_to_compare_with_is_neither_met_nor_missed() -> None:
    aims = aims_of(rows_of([moved(Engine.ARCHITECT, 2, 30), run(Engine.PRECOPY, None)]))
    assert [aim.is_met for aim in aims] == [True, None, None]


@pytest.mark.parametrize(
    ("silences", "expected"),
    [
        ((), None),
        ((Silence(10.2, 100.0), Silence(10.05, 60.0)), 100.0),  # 40 ms of it were before the resume
        ((Silence(10.05, 60.0),), None),  # it was over before the resume
        ((Silence(10.9, 100.0),), None),  # it had not begun yet
    ],
)
def test_the_time_from_the_resume_is_that_of_the_silence_in_which_it_lies(
    silences: tuple[Silence, ...], expected: float | None
) -> None:
    found = Run(Engine.PRECOPY, SMALL, 1, 0, 0, Move(1, 1, 1, (), {}, 10.1), Gap(100, 1, 0, 0, silences))
    assert after_resume_ms(found) == expected
