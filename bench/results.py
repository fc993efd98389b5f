"""What the migration benchmark writes: every run as it was (`raw`), and one row for each cell and engine.

A run that failed or was too slow is a result, too: it is kept with its error, and its row counts it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import TypeVar

import msgspec

from bench.gap_window import Silence

ItemT = TypeVar("ItemT")


class Engine(StrEnum):
    """Who moves the VM."""

    ARCHITECT = "architect"
    PRECOPY = "qemu-precopy"
    POSTCOPY = "qemu-postcopy"
    MULTIFD = "qemu-multifd"


class Cell(msgspec.Struct, frozen=True):
    """One kind of VM: its memory, and how much of it the guest writes a second."""

    memory_mib: int
    dirty_mib_s: int


class Gap(msgspec.Struct, frozen=True):
    """What a client outside saw over one move: a datagram every millisecond, and the longest time without an answer.

    `sender_stall_ms` is the longest time that the client itself failed to send: a gap not much longer than it is noise. `silences`
    are all that were noted, `lost_at_s` when the (first) lost ones were sent; both in seconds since 1970.
    """

    gap_ms: float
    sent: int
    lost: int
    sender_stall_ms: float
    silences: tuple[Silence, ...] = ()
    lost_at_s: tuple[float, ...] = ()


class Span(msgspec.Struct, frozen=True):
    """A part of a move; seconds since its start."""

    name: str
    start_s: float
    end_s: float


class Move(msgspec.Struct, frozen=True):
    """One move as its engine reports it. `details` are figures of that engine alone."""

    total_s: float
    downtime_ms: float
    bytes: int
    phases: tuple[Span, ...] = ()
    details: dict[str, float | int | str | bool] = {}


class Run(msgspec.Struct, frozen=True):
    """One attempt: `move` is None if it failed, and then `error` says how. `load` is the machine's before it."""

    engine: Engine
    cell: Cell
    number: int
    started_at_s: float
    load: float
    move: Move | None
    gap: Gap | None
    error: str = ""
    dirty_mib_s_seen: float | None = None


class Row(msgspec.Struct, frozen=True):
    """All runs of one engine in one cell: medians (`_p50` or unmarked) and the worst (`_max`); None where no run went well."""

    engine: Engine
    memory_mib: int
    dirty_mib_s: int
    runs: int
    failed: int
    total_s: float | None
    downtime_ms_p50: float | None
    gap_ms_p50: float | None
    gap_ms_max: float | None
    bytes: int | None
    lost_p50: float | None
    dirty_mib_s_seen: float | None


class Machine(msgspec.Struct, frozen=True):
    """Where it was measured. `load` is the one-minute load average at the start."""

    cores: int
    memory_bytes: int
    kernel: str
    qemu: str
    accelerator: str
    load: float


class Limits(msgspec.Struct, frozen=True):
    """What QEMU was allowed, for its defaults (128 MiB/s) would measure themselves."""

    max_bandwidth_bytes_s: int = 100 << 30
    downtime_limit_ms: int = 300
    multifd_channels: int = 2
    timeout_s: float = 60.0


class Ratio(msgspec.Struct, frozen=True):
    """Ours divided by theirs, in one cell: below 1 is better."""

    engine: Engine
    memory_mib: int
    dirty_mib_s: int
    total: float | None
    downtime: float | None
    gap: float | None
    bytes: float | None


class Document(msgspec.Struct, frozen=True):
    """`out/bench/migration.json`."""

    machine: Machine
    limits: Limits
    rows: tuple[Row, ...]
    ratios: tuple[Ratio, ...]
    raw: tuple[Run, ...]


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
    ours = {(row.memory_mib, row.dirty_mib_s): row for row in rows if row.engine is Engine.ARCHITECT}
    ratios = []
    for row in rows:
        mine = ours.get((row.memory_mib, row.dirty_mib_s))
        if row.engine is Engine.ARCHITECT or mine is None:
            continue
        ratios.append(
            Ratio(
                row.engine, row.memory_mib, row.dirty_mib_s, _divide(mine.total_s, row.total_s),
                _divide(mine.downtime_ms_p50, row.downtime_ms_p50), _divide(mine.gap_ms_p50, row.gap_ms_p50),
                _divide(mine.bytes, row.bytes),
            )
        )  # fmt: skip
    return tuple(ratios)


def table(rows: Sequence[Row], ratios: Sequence[Ratio]) -> str:
    """The rows for people, each of theirs with ours divided by it."""
    by_key = {(ratio.memory_mib, ratio.dirty_mib_s, ratio.engine): ratio for ratio in ratios}
    head = ("MiB", "MiB/s", "engine", "ok", "total s", "pause ms", "gap ms", "worst", "lost", "MiB sent", "ours/theirs: total",
            "pause", "gap", "bytes")  # fmt: skip
    lines: list[tuple[str, ...]] = [head]
    for row in rows:
        ratio = by_key.get((row.memory_mib, row.dirty_mib_s, row.engine))
        compared = ("", "", "", "") if ratio is None else (ratio.total, ratio.downtime, ratio.gap, ratio.bytes)
        sent = None if row.bytes is None else row.bytes / 2**20
        lines.append((
            str(row.memory_mib), str(row.dirty_mib_s), row.engine.value, f"{row.runs - row.failed}/{row.runs}",
            _text(row.total_s, 2), _text(row.downtime_ms_p50, 1), _text(row.gap_ms_p50, 1), _text(row.gap_ms_max, 1),
            _text(row.lost_p50, 0), _text(sent, 0), *(_text(part, 2) for part in compared),
        ))  # fmt: skip
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("  ".join(part.rjust(width) for part, width in zip(line, widths, strict=True)) for line in lines)


def _row(cell: Cell, engine: Engine, runs: Sequence[Run]) -> Row:
    good = [(run.move, run.gap) for run in runs if run.move is not None]
    moves = [move for move, _ in good]
    gaps = [gap for _, gap in good if gap is not None]
    sizes = _median(moves, lambda move: move.bytes)
    seen = [run.dirty_mib_s_seen for run in runs if run.dirty_mib_s_seen is not None]
    return Row(
        engine=engine,
        memory_mib=cell.memory_mib,
        dirty_mib_s=cell.dirty_mib_s,
        runs=len(runs),
        failed=len(runs) - len(good),
        total_s=_median(moves, lambda move: move.total_s),
        downtime_ms_p50=_median(moves, lambda move: move.downtime_ms),
        gap_ms_p50=_median(gaps, lambda gap: gap.gap_ms),
        gap_ms_max=max((gap.gap_ms for gap in gaps), default=None),
        bytes=None if sizes is None else round(sizes),
        lost_p50=_median(gaps, lambda gap: gap.lost),
        dirty_mib_s_seen=_median(seen, lambda rate: rate),
    )


def _median(items: Sequence[ItemT], figure: Callable[[ItemT], float]) -> float | None:
    return round(statistics.median(map(figure, items)), 3) if items else None


def _divide(ours: float | None, theirs: float | None) -> float | None:
    return round(ours / theirs, 3) if ours is not None and theirs else None


def _text(value: float | str | None, digits: int) -> str:
    if isinstance(value, str):
        return value
    return "-" if value is None else f"{value:.{digits}f}"
