"""Rows and ratios of the migration benchmark: failures count, figures are of what went well."""

from __future__ import annotations

import msgspec

from bench.results import Cell, Document, Engine, Gap, Limits, Machine, Move, Row, Run, ratios_of, rows_of, table

SMALL, BIG = Cell(256, 20), Cell(1024, 0)


def run(engine: Engine, pause_ms: float | None, gap_ms: float = 10.0, cell: Cell = SMALL, number: int = 1) -> Run:
    move = None if pause_ms is None else Move(pause_ms / 10, pause_ms, int(pause_ms * 1000))
    error = "" if pause_ms is not None else "qemu-precopy: not done in 60 s; see"
    return Run(engine, cell, number, 0.0, 1.0, move, Gap(gap_ms, 1000, 3, 1.0), error, 19.5)


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
    }  # fmt: skip
    assert set(document["machine"]) == {"cores", "memory_bytes", "kernel", "qemu", "accelerator", "load"}
    assert document["limits"]["max_bandwidth_bytes_s"] > 10**10
    assert document["raw"][1]["error"].startswith("qemu-precopy")
    assert msgspec.json.decode(text, type=Document).raw == runs
