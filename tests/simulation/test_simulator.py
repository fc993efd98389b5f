"""Handovers under faults, from seeds: the judge finds nothing in the real code, and finds what is broken on purpose."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from architect.model.ownership import OwnershipRecord, RecordKind
from architect.testing.sim_memory import SimMemory
from architect.testing.sim_scenario import Scenario, draw_scenario
from architect.testing.sim_store import SimOwnershipPort
from architect.testing.simulate import describe, main
from architect.testing.simulator import Sabotage, Simulation, simulate

SEEDS = 200
BATCH = 20
SEEDS_THAT_FAILED = (5, 31, 81, 118, 142, 418, 605, 673, 5103)
"""Each found a defect once: kept for ever."""
SEEDS_THAT_TELL = (51, 233, 254)
"""Tried first where something is broken on purpose: two sides really race for the record there."""


@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_no_invariant_breaks_under_the_faults_of_any_seed(first: int) -> None:
    for seed in range(first, first + BATCH):
        result = simulate(draw_scenario(seed))
        assert not result.violations, describe(result, verbose=True)


@pytest.mark.parametrize("seed", SEEDS_THAT_FAILED)
def test_a_seed_that_once_failed_passes(seed: int) -> None:
    result = simulate(draw_scenario(seed))
    assert not result.violations, describe(result, verbose=True)


def test_equal_seeds_give_equal_traces_in_different_processes() -> None:
    command = [sys.executable, "-m", "architect.testing.simulate", "--seed", "14", "--verbose"]
    root = Path(__file__).parents[2]
    outputs = [
        subprocess.run(
            command, cwd=root, env={**os.environ, "PYTHONHASHSEED": salt}, capture_output=True, text=True, check=False
        ).stdout
        for salt in ("1", "2")
    ]
    assert outputs[0] == outputs[1] and "-- all events" in outputs[0]


def test_the_command_prints_the_scenario_and_its_outcome(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "8"]) == 0
    assert "seed 8:" in capsys.readouterr().out


def test_the_judge_catches_a_source_that_resumes_without_its_abort_record(monkeypatch: pytest.MonkeyPatch) -> None:
    create = SimOwnershipPort.create

    async def pretend(port: SimOwnershipPort, record: OwnershipRecord) -> OwnershipRecord:
        is_of_source = record.kind is RecordKind.ABORT and record.host == port.host
        return record if is_of_source else await create(port, record)

    def sabotage(_: Simulation) -> None:
        monkeypatch.setattr(SimOwnershipPort, "create", pretend)

    assert _is_caught(sabotage, "two copies")


def test_the_judge_catches_a_handover_that_skips_the_last_dirty_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    round_of = SimMemory.round

    async def lazy(memory: SimMemory) -> object:
        session = memory.outgoing
        assert session is not None
        running = memory.host.qemus[memory.vm.id].status.value == "running"
        if not running:
            session.unsent.clear()
        return await round_of(memory)

    def sabotage(simulation: Simulation) -> None:
        monkeypatch.setattr(SimMemory, "round", lazy)
        monkeypatch.setattr(SimMemory, "root", lambda memory: "the root that hides it")

    assert _is_caught(sabotage, "lost a write")


def test_the_judge_catches_a_target_that_claims_before_it_knows_which_record_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    create = SimOwnershipPort.create

    async def hasty(port: SimOwnershipPort, record: OwnershipRecord) -> OwnershipRecord:
        if record.kind is not RecordKind.RUN:
            return await create(port, record)
        await create(port, record)
        return record

    def sabotage(_: Simulation) -> None:
        monkeypatch.setattr(SimOwnershipPort, "create", hasty)

    assert _is_caught(sabotage, "two copies")


def _is_caught(sabotage: Sabotage, word: str) -> bool:
    """Whether some seed's violations speak of `word`."""
    for seed in (*SEEDS_THAT_TELL, *range(400)):
        scenario: Scenario = draw_scenario(seed)
        if any(word in violation for violation in simulate(scenario, sabotage).violations):
            return True
    return False
