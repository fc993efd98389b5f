"""What the migration benchmark is told to measure: its command line."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path

import msgspec

from bench.results import DEFAULT_ENGINES, Cell, Engine, Limits

DISK_MIB_S = 5
CELLS = (Cell(256, 0), Cell(256, 20), Cell(256, 20, DISK_MIB_S), Cell(1024, 20))
FULL_CELLS = tuple(
    Cell(memory_mib, dirty_mib_s, disk_mib_s)
    for memory_mib, disk_mib_s, dirty_mib_s in itertools.product((256, 1024, 4096), (0, DISK_MIB_S), (0, 20, 200))
)
QUICK_CELLS = (Cell(256, 20), Cell(256, 20, DISK_MIB_S))
RUNS = 3
OUT = Path("out/bench/migration.json")
MEMORY_MIB_MIN = 128


class Options(msgspec.Struct, frozen=True):
    """What to measure, and where to write it. `resumes`: cells that are there whole already are not measured again."""

    cells: tuple[Cell, ...] = CELLS
    runs: int = RUNS
    engines: tuple[Engine, ...] = DEFAULT_ENGINES
    out: Path = OUT
    limits: Limits = Limits()
    resumes: bool = False


def parse(words: list[str]) -> Options:
    """The options of a command line."""
    parser = argparse.ArgumentParser(prog="bench migration", description="The same VM moved by us and by QEMU's own migration.")
    parser.add_argument("--cells", type=_cells, help=f"MEMORY_MIB/DIRTY_MIB_S[/DISK_MIB_S],… (default: {_text(CELLS)})")
    parser.add_argument("--runs", type=_count, default=RUNS, help="runs of each engine in each cell")
    parser.add_argument("--engines", type=_engines, help=",".join(Engine) + " (default: all but the tuned ones)")
    limits = Limits()
    parser.add_argument(
        "--downtime-limit", type=_count, default=limits.downtime_limit_ms, metavar="MS", help="QEMU's; its own default is 300"
    )
    parser.add_argument(
        "--tuned-downtime-limit", type=_count, default=limits.tuned_downtime_limit_ms, metavar="MS", help="of the tuned engines"
    )
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--resume", action="store_true", help="measure only cells that --out lacks, of this machine and commit")
    parser.add_argument("--quick", action="store_true", help="small cells, one run: whether it works")
    parser.add_argument("--full", action="store_true", help=f"all of {_text(FULL_CELLS)} by all engines, resumed; takes hours")
    found = parser.parse_args(words)
    limits = Limits(downtime_limit_ms=found.downtime_limit, tuned_downtime_limit_ms=found.tuned_downtime_limit)
    options = Options(runs=found.runs, out=found.out, limits=limits, resumes=found.resume or found.full)
    if found.full:
        options = msgspec.structs.replace(options, cells=FULL_CELLS, engines=tuple(Engine))
    if found.quick:
        options = msgspec.structs.replace(options, cells=QUICK_CELLS, runs=1)
    chosen = {name: value for name in ("cells", "engines") if (value := getattr(found, name)) is not None}
    return msgspec.structs.replace(options, **chosen)


def turns(options: Options) -> Iterator[tuple[int, Engine]]:
    """Every engine once, then every engine again, …"""
    for number in range(1, options.runs + 1):
        for engine in options.engines:
            yield number, engine


def _text(cells: tuple[Cell, ...]) -> str:
    return ",".join(map(str, cells))


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def _cells(text: str) -> tuple[Cell, ...]:
    try:
        cells = tuple(Cell(*map(int, part.split("/", 2))) for part in text.split(","))
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not MEMORY_MIB/DIRTY_MIB_S[/DISK_MIB_S],…") from error
    if any(cell.memory_mib < MEMORY_MIB_MIN or cell.dirty_mib_s < 0 or cell.disk_mib_s < 0 for cell in cells):
        raise argparse.ArgumentTypeError(f"a VM has at least {MEMORY_MIB_MIN} MiB and writes nothing negative")
    return cells


def _engines(text: str) -> tuple[Engine, ...]:
    try:
        return tuple(dict.fromkeys(Engine(part) for part in text.split(",")))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: engines are {', '.join(Engine)}") from error
