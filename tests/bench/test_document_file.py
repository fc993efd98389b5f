"""The benchmark's file is gone on with where it is of the same machine, code and limits, and put aside otherwise."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from bench.document_file import Measured
from bench.migration_options import Options
from bench.results import Cell, Document, Engine, Limits, Machine, Run

MACHINE = Machine(2, 1 << 30, "6.18", "7.2.22", "tcg", 0.5, "abc")
ONE, OTHER = Cell(256, 0), Cell(256, 20)
ENGINES = (Engine.ARCHITECT, Engine.PRECOPY)


def run(engine: Engine, cell: Cell, number: int = 1) -> Run:
    return Run(engine, cell, number, 0.0, 1.0, None, None, "failed")


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options((ONE, OTHER), 1, ENGINES, tmp_path / "out" / "migration.json", Limits(), resumes=True)


@pytest.fixture
def before(options: Options) -> Measured:
    """One cell is whole, of the other an engine is missing."""
    measured = Measured(options, MACHINE)
    assert measured.cells_to_measure() == (ONE, OTHER)
    measured.runs += [*(run(engine, ONE) for engine in ENGINES), run(Engine.ARCHITECT, OTHER)]
    measured.write()
    return measured


def test_cells_that_are_whole_are_kept_and_others_measured_anew(options: Options, before: Measured) -> None:
    measured = Measured(options, msgspec.structs.replace(MACHINE, load=9.0))
    assert measured.cells_to_measure() == (OTHER,)
    assert [found.cell for found in measured.runs] == [ONE, ONE]


def test_without_resuming_what_is_asked_for_is_measured_and_other_cells_stay(options: Options, before: Measured) -> None:
    measured = Measured(msgspec.structs.replace(options, cells=(ONE,), resumes=False), MACHINE)
    assert measured.cells_to_measure() == (ONE,)
    assert [found.cell for found in measured.runs] == [OTHER]


def test_more_runs_are_not_there_yet(options: Options, before: Measured) -> None:
    assert Measured(msgspec.structs.replace(options, runs=2), MACHINE).cells_to_measure() == (ONE, OTHER)


@pytest.mark.parametrize(
    "machine",
    [
        msgspec.structs.replace(MACHINE, commit="def"),
        msgspec.structs.replace(MACHINE, cores=4),
        msgspec.structs.replace(MACHINE, commit="abc-changed"),
    ],
)
def test_what_another_machine_or_commit_measured_is_put_aside(options: Options, before: Measured, machine: Machine) -> None:
    measured = Measured(options, machine)
    assert (measured.cells_to_measure(), measured.runs) == ((ONE, OTHER), [])
    aside = options.out.with_name("migration.before.json")
    assert len(msgspec.json.decode(aside.read_bytes(), type=Document).raw) == 3
    assert not options.out.exists()


def test_other_limits_are_another_measurement(options: Options, before: Measured) -> None:
    other = msgspec.structs.replace(options, limits=Limits(downtime_limit_ms=30))
    assert Measured(other, MACHINE).cells_to_measure() == (ONE, OTHER)


def test_a_file_that_cannot_be_read_is_measured_anew(options: Options) -> None:
    options.out.parent.mkdir()
    options.out.write_text("{")
    measured = Measured(options, MACHINE)
    assert measured.cells_to_measure() == (ONE, OTHER)
    assert measured.write().raw == ()
