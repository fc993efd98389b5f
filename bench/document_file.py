"""The file of the migration benchmark: gone on with where it is of this machine and code.

A document of another machine, commit or set of limits is put aside as `NAME.before.json`: no table has figures of two codes.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import msgspec

from bench.comparison import aims_of, ratios_of, rows_of
from bench.json_file import write_json
from bench.migration_options import Options, turns
from bench.results import Cell, Document, Engine, EngineSetup, Machine, Run

_ROOT = Path(__file__).resolve().parents[1]
_MEASURED = ("architect", "native", "bench")


class Measured:
    """The runs and set-ups so far, those of an earlier benchmark included, and where they are written."""

    def __init__(self, options: Options, machine: Machine) -> None:
        self._options = options
        self._machine = machine
        self.runs: list[Run] = []
        self.setups: dict[Engine, EngineSetup] = {}
        if (before := _read(options.out)) is not None:
            if _is_comparable(before, options, machine):
                self.runs = list(before.raw)
                self.setups = {setup.engine: setup for setup in before.setups}
            else:
                options.out.rename(options.out.with_suffix(".before.json"))

    def cells_to_measure(self) -> tuple[Cell, ...]:
        """The cells that are asked for and not there, or not to be kept. What is there of them is forgotten: a cell is one table's
        worth of turns, not two halves."""
        kept = [cell for cell in self._options.cells if self._options.resumes and self._is_whole(cell)]
        wanted = tuple(cell for cell in self._options.cells if cell not in kept)
        self.runs = [run for run in self.runs if run.cell not in wanted]
        return wanted

    def write(self) -> Document:
        """Write what there is, whole or not at all; what was written."""
        rows = rows_of(self.runs)
        setups = tuple(self.setups[engine] for engine in Engine if engine in self.setups)
        document = Document(self._machine, self._options.limits, rows, ratios_of(rows), tuple(self.runs), aims_of(rows), setups)
        write_json(self._options.out, document)
        return document

    def _is_whole(self, cell: Cell) -> bool:
        there = {(run.number, run.engine) for run in self.runs if run.cell == cell}
        return there >= set(turns(self._options))


def commit() -> str:
    """The commit of this clone, with `-changed` where code that is measured differs from it; empty outside a clone."""
    found = _git("rev-parse", "HEAD")
    return found + "-changed" if found and _git("status", "--porcelain", "--", *_MEASURED) else found


def _git(*words: str) -> str:
    try:
        return subprocess.run(["git", *words], cwd=_ROOT, capture_output=True, text=True, timeout=30, check=False).stdout.strip()
    except OSError:
        return ""


def _read(path: Path) -> Document | None:
    """The document at `path`; None if there is none, or one of another format."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Document)
    except (OSError, msgspec.DecodeError):
        return None


def _is_comparable(before: Document, options: Options, machine: Machine) -> bool:
    same_machine = msgspec.structs.replace(before.machine, load=machine.load) == machine
    return same_machine and before.limits == options.limits and bool(machine.commit) and not machine.commit.endswith("-changed")
