"""Rows, ratios and aims of the migration benchmark: what its runs come to. Figures are of runs that went well; failures count."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import TypeVar

from bench.results import Aim, Cell, Engine, Move, Ratio, Row, Run

ItemT = TypeVar("ItemT")
GAP_RATIO_AIM = 0.2
TOTAL_RATIO_AIM = 1.0
GAP_MS_AIM = 40.0
_BEATEN_IN_GAP = (Engine.PRECOPY, Engine.MULTIFD)
# Packets are held from this phase on: it is the first that a gap has in it.
_GAP_BEGINS, _GAP_ENDS = "hold", "target-resume"


def rows_of(runs: Sequence[Run]) -> tuple[Row, ...]:
    """One row for each cell and engine, in the order in which they came."""
    groups: dict[tuple[Cell, Engine], list[Run]] = {}
    for cell in dict.fromkeys(run.cell for run in runs):
        for engine in Engine:
            if found := [run for run in runs if (run.cell, run.engine) == (cell, engine)]:
                groups[cell, engine] = found
    return tuple(_row(cell, engine, found) for (cell, engine), found in groups.items())


def ratios_of(rows: Sequence[Row]) -> tuple[Ratio, ...]:
    """Ours against each of theirs, cell by cell; None where one has no figure, or theirs is zero."""
    ours = {cell_of(row): row for row in rows if row.engine is Engine.ARCHITECT}
    return tuple(
        Ratio(
            row.engine, row.memory_mib, row.dirty_mib_s, row.disk_mib_s, _divide(mine.total_s, row.total_s),
            _divide(mine.downtime_ms_p50, row.downtime_ms_p50), _divide(mine.gap_ms_p50, row.gap_ms_p50),
            _divide(mine.bytes, row.bytes),
        )
        for row in rows
        if row.engine is not Engine.ARCHITECT and (mine := ours.get(cell_of(row))) is not None
    )  # fmt: skip


def aims_of(rows: Sequence[Row]) -> tuple[Aim, ...]:
    """In each cell that has a row of ours: the gap, against pre-copy's and multifd's, and the total, against the best of theirs."""
    aims: list[Aim] = []
    for mine in rows:
        if mine.engine is not Engine.ARCHITECT:
            continue
        theirs = [row for row in rows if cell_of(row) == cell_of(mine) and row is not mine]
        gap_profile = _gap_profile(mine)
        aims.append(_aim(f"gap median at most {GAP_MS_AIM:.0f} ms", mine, GAP_MS_AIM, mine.gap_ms_p50, gap_profile))
        for row in theirs:
            if row.engine in _BEATEN_IN_GAP:
                ratio = _divide(mine.gap_ms_p50, row.gap_ms_p50)
                aims.append(_aim(f"gap at least 5 times smaller than {row.engine}'s", mine, GAP_RATIO_AIM, ratio, gap_profile))
        best = min((row.total_s for row in theirs if row.total_s is not None), default=None)
        ratio = _divide(mine.total_s, best)
        aims.append(_aim("total not longer than the best of QEMU's", mine, TOTAL_RATIO_AIM, ratio, mine.phases_ms))
    return tuple(aims)


def cell_of(row: Row) -> Cell:
    """The cell that a row is of."""
    return Cell(row.memory_mib, row.dirty_mib_s, row.disk_mib_s)


def is_shared(cell: Cell, engine: Engine) -> bool:
    """Whether both ends have the disk's file open, so that it need not be moved: QEMU's engines, where the guest writes no disk."""
    return engine is not Engine.ARCHITECT and cell.disk_mib_s == 0


def _gap_profile(mine: Row) -> dict[str, float]:
    """The phases that a gap consists of, and what comes after the resume; all phases where those are not told."""
    names = list(mine.phases_ms)
    if _GAP_BEGINS in names and _GAP_ENDS in names:
        names = names[names.index(_GAP_BEGINS) : names.index(_GAP_ENDS) + 1]
    profile = {name: mine.phases_ms[name] for name in names}
    return profile | ({} if mine.after_resume_ms_p50 is None else {"after the resume": mine.after_resume_ms_p50})


def _aim(name: str, mine: Row, limit: float, found: float | None, profile: dict[str, float]) -> Aim:
    is_met = None if found is None else found <= limit
    longest = sorted(profile.items(), key=lambda item: -item[1])
    return Aim(name, mine.memory_mib, mine.dirty_mib_s, mine.disk_mib_s, limit, found, is_met, {} if is_met else dict(longest))


def _row(cell: Cell, engine: Engine, runs: Sequence[Run]) -> Row:
    good = [run for run in runs if run.move is not None]
    moves = [run.move for run in good if run.move is not None]
    gaps = [run.gap for run in good if run.gap is not None]
    sizes = _median(moves, lambda move: move.bytes)
    before = [run.before for run in runs if run.before is not None]
    during = [run.during for run in good if run.during is not None]
    return Row(
        engine=engine,
        memory_mib=cell.memory_mib,
        dirty_mib_s=cell.dirty_mib_s,
        disk_mib_s=cell.disk_mib_s,
        storage="shared" if is_shared(cell, engine) else "moved",
        runs=len(runs),
        failed=len(runs) - len(good),
        total_s=_median(moves, lambda move: move.total_s),
        downtime_ms_p50=_median(moves, lambda move: move.downtime_ms),
        downtime_ms_max=max((move.downtime_ms for move in moves), default=None),
        gap_ms_p50=_median(gaps, lambda gap: gap.gap_ms),
        gap_ms_max=max((gap.gap_ms for gap in gaps), default=None),
        after_resume_ms_p50=_median([ms for run in good if (ms := after_resume_ms(run)) is not None], lambda ms: ms),
        bytes=None if sizes is None else round(sizes),
        lost_p50=_median(gaps, lambda gap: gap.lost),
        lost_max=max((gap.lost for gap in gaps), default=None),
        dirty_mib_s_seen=_median(before, lambda rate: rate.memory_mib_s),
        dirty_mib_s_moving=_median(during, lambda rate: rate.memory_mib_s),
        disk_mib_s_seen=_median(before, lambda rate: rate.disk_mib_s),
        disk_mib_s_moving=_median(during, lambda rate: rate.disk_mib_s),
        phases_ms=_phases_ms(moves),
    )


def after_resume_ms(run: Run) -> float | None:
    """From the guest's resume to the end of the longest silence; None where it is not known, or that silence ended before it."""
    if run.move is None or run.move.resumed_at_s is None or run.gap is None or not run.gap.silences:
        return None
    longest = max(run.gap.silences, key=lambda silence: silence.length_ms)
    after_ms = (longest.end_s - run.move.resumed_at_s) * 1000
    return round(after_ms, 1) if 0 <= after_ms <= longest.length_ms else None


def _phases_ms(moves: Sequence[Move]) -> dict[str, float]:
    """The median length of each phase; a move that lacks one counts as 0 for it."""
    lengths: list[dict[str, float]] = []
    for move in moves:
        sums: dict[str, float] = {}
        for phase in move.phases:
            sums[phase.name] = sums.get(phase.name, 0.0) + (phase.end_s - phase.start_s) * 1000
        lengths.append(sums)
    names = dict.fromkeys(name for sums in lengths for name in sums)
    return {name: round(statistics.median(sums.get(name, 0.0) for sums in lengths), 1) for name in names}


def _median(items: Sequence[ItemT], figure: Callable[[ItemT], float]) -> float | None:
    return round(statistics.median(map(figure, items)), 3) if items else None


def _divide(ours: float | None, theirs: float | None) -> float | None:
    return round(ours / theirs, 3) if ours is not None and theirs else None
