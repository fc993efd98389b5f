"""The migration benchmark's rows and aims for people."""

from __future__ import annotations

from collections.abc import Sequence

from bench.comparison import cell_of
from bench.results import Aim, Cell, Ratio, Row

_HEAD = ("MiB", "MiB/s", "disk", "engine", "ok", "total s", "pause ms", "gap ms", "worst", "lost", "MiB sent", "wrote MiB/s",
         "ours/theirs: total", "pause", "gap", "bytes")  # fmt: skip


def table(rows: Sequence[Row], ratios: Sequence[Ratio]) -> str:
    """A line for each row, those of QEMU with ours divided by theirs."""
    by_key = {(Cell(ratio.memory_mib, ratio.dirty_mib_s, ratio.disk_mib_s), ratio.engine): ratio for ratio in ratios}
    lines: list[tuple[str, ...]] = [_HEAD]
    for row in rows:
        ratio = by_key.get((cell_of(row), row.engine))
        compared = ("", "", "", "") if ratio is None else (ratio.total, ratio.downtime, ratio.gap, ratio.bytes)
        sent = None if row.bytes is None else row.bytes / 2**20
        lines.append((
            str(row.memory_mib), str(row.dirty_mib_s), f"{row.disk_mib_s} {row.storage}", row.engine.value,
            f"{row.runs - row.failed}/{row.runs}", _text(row.total_s, 2), _text(row.downtime_ms_p50, 1), _text(row.gap_ms_p50, 1),
            _text(row.gap_ms_max, 1), _text(row.lost_p50, 0), _text(sent, 0), _text(row.dirty_mib_s_seen, 0),
            *(_text(part, 2) for part in compared),
        ))  # fmt: skip
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
    return "\n".join("  ".join(part.rjust(width) for part, width in zip(line, widths, strict=True)) for line in lines)


def aims_text(aims: Sequence[Aim]) -> str:
    """Which aims are met in how many cells, and for each that is missed the longest parts of our moves."""
    lines = []
    for name in dict.fromkeys(aim.name for aim in aims):
        of_name = [aim for aim in aims if aim.name == name and aim.is_met is not None]
        lines.append(f"aim: {name}: in {sum(bool(aim.is_met) for aim in of_name)} of {len(of_name)} cells")
        for aim in of_name:
            if not aim.is_met:
                parts = ", ".join(f"{phase} {ms:.0f}" for phase, ms in list(aim.profile.items())[:6])
                lines.append(f"  missed in {aim.memory_mib}/{aim.dirty_mib_s}/{aim.disk_mib_s}: {aim.found} (ms: {parts})")
    return "\n".join(lines)


def _text(value: float | str | None, digits: int) -> str:
    if isinstance(value, str):
        return value
    return "-" if value is None else f"{value:.{digits}f}"
