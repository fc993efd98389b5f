"""What the transfer benchmark writes: every run (`raw`), and one row of medians for each engine, size of extent and encryption."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from enum import StrEnum

import msgspec


class Engine(StrEnum):
    """Who moves the bytes."""

    ARCHITECT = "architect"
    TCP = "tcp"
    MULTIFD = "qemu-multifd"


class Way(msgspec.Struct, frozen=True):
    """One way of moving them: `extent_bytes` follow one another in the memory, as many again after them are holes."""

    engine: Engine
    extent_bytes: int
    tls: bool


class Sample(msgspec.Struct, frozen=True):
    """One run of it. `cpu_s` is of both ends together, without what was before the first byte."""

    way: Way
    number: int
    bytes: int
    seconds: float
    cpu_s: float
    load: float


class TransferRow(msgspec.Struct, frozen=True):
    """Medians of one way. `of_tcp` is the median of its rate divided by that of plain TCP in the same round."""

    engine: Engine
    extent_bytes: int
    tls: bool
    bytes_per_s: int
    cpu_s_per_gib: float
    of_tcp: float | None
    runs: int


class TransferMachine(msgspec.Struct, frozen=True):
    """Where it was measured."""

    cores: int
    processor: str
    kernel: str
    load: float


class TransferDocument(msgspec.Struct, frozen=True):
    """`out/bench/transfer.json`."""

    machine: TransferMachine
    rows: tuple[TransferRow, ...]
    raw: tuple[Sample, ...]


def rows_of(samples: Sequence[Sample]) -> tuple[TransferRow, ...]:
    """One row for each way, in the order in which they came."""
    return tuple(_row(way, samples) for way in dict.fromkeys(sample.way for sample in samples))


def _row(way: Way, samples: Sequence[Sample]) -> TransferRow:
    mine = [sample for sample in samples if sample.way == way]
    plain = {sample.number: _rate(sample) for sample in samples if sample.way == Way(Engine.TCP, way.extent_bytes, False)}
    ratios = [_rate(sample) / plain[sample.number] for sample in mine if sample.number in plain]
    return TransferRow(
        way.engine, way.extent_bytes, way.tls, round(statistics.median(map(_rate, mine))),
        round(statistics.median(sample.cpu_s / sample.bytes * 2**30 for sample in mine), 2),
        round(statistics.median(ratios), 3) if ratios else None, len(mine),
    )  # fmt: skip


def _rate(sample: Sample) -> float:
    return sample.bytes / sample.seconds


def table(rows: Sequence[TransferRow]) -> str:
    """The rows for people."""
    lines = [("engine", "extent KiB", "TLS", "MiB/s", "of TCP", "CPU s/GiB", "runs")]
    for row in rows:
        of_tcp = "-" if row.of_tcp is None else f"{row.of_tcp:.2f}"
        lines.append((
            row.engine.value, str(row.extent_bytes >> 10), "yes" if row.tls else "no", f"{row.bytes_per_s / 2**20:.0f}", of_tcp,
            f"{row.cpu_s_per_gib:.2f}", str(row.runs),
        ))  # fmt: skip
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(part.rjust(width) for part, width in zip(line, widths, strict=True)) for line in lines)
