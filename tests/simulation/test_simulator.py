"""Handovers and fleets under faults, from seeds: the judge finds nothing in the real code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from architect.testing.fleet_scenario import draw_fleet
from architect.testing.simulate import describe, draw, main, run

SEEDS = 1000
BATCH = 50
SEEDS_THAT_FAILED = (5, 31, 81, 118, 142, 418, 605, 673, 5103)
"""Each found a defect once, by the drawing of its time."""
FLEETS_THAT_FAILED = (63,)
"""63: a steer that waited in an older connection to the edge undid a newer one of the same term."""
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_no_invariant_breaks_under_the_faults_of_any_seed(first: int) -> None:
    for seed in range(first, first + BATCH):
        result = run(draw(seed))
        assert not result.violations, describe(result, verbose=False)


@pytest.mark.parametrize("seed", SEEDS_THAT_FAILED)
def test_a_seed_that_once_failed_passes(seed: int) -> None:
    result = run(draw(seed))
    assert not result.violations, describe(result, verbose=False)


@pytest.mark.parametrize("seed", FLEETS_THAT_FAILED)
def test_a_fleet_that_once_failed_passes(seed: int) -> None:
    result = run(draw_fleet(seed))
    assert not result.violations, describe(result, verbose=False)


@pytest.mark.soak
def test_no_invariant_breaks_under_any_number_of_seeds() -> None:
    """SEEDS=A..B chooses them, JOBS the processes."""
    seeds, jobs = os.environ.get("SEEDS", "10000..19999"), os.environ.get("JOBS", str(os.cpu_count() or 1))
    assert main(["--seeds", seeds, "--jobs", jobs]) == 0


@pytest.mark.parametrize("arguments", [("--seed", "14"), ("--seed", "2", "--hosts", "4", "--vms", "8")])
def test_equal_seeds_give_equal_traces_in_different_processes(arguments: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "architect.testing.simulate", *arguments, "--verbose"]
    outputs = [
        subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": salt}, capture_output=True, text=True, check=False
        ).stdout
        for salt in ("1", "2")
    ]
    assert outputs[0] == outputs[1] and "-- all events" in outputs[0]


def test_two_runs_in_one_process_give_the_same_trace() -> None:
    scenario = draw_fleet(3, 4, 8)
    first, second = run(scenario), run(scenario)
    assert (first.trace, first.events, first.calls) == (second.trace, second.events, second.calls)


def test_the_command_prints_the_scenario_and_its_outcome(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "8"]) == 0
    assert "seed 8:" in capsys.readouterr().out


def test_the_command_tells_of_a_range_of_fleets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "1..2", "--hosts", "3", "--vms", "4", "--verbose"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("fleet of 3 hosts") == 2 and "2 simulated, 0 with violations" in printed
