"""The simulation finds known bugs that are put in on purpose, and makes the scenario that shows them small."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable

import msgspec
import pytest

from architect.model.handover_state import MigrationMode
from architect.testing.fleet_scenario import Fleet, FleetVm, Incident, IncidentKind, draw_fleet
from architect.testing.sim_machine import GuestShape
from architect.testing.sim_mutations import MUTATIONS
from architect.testing.sim_result import Result
from architect.testing.sim_scenario import Fault, FaultKind, Move, Scenario, draw_scenario
from architect.testing.sim_shrink import AnyScenario, literal, shrink
from architect.testing.simulate import draw, main, run

NAMES = {
    kind.__name__: kind
    for kind in (Fleet, FleetVm, Incident, IncidentKind, GuestShape, Scenario, Fault, FaultKind, Move, MigrationMode)
}


def find(name: str, seeds: Iterable[int], hosts: int | None = None, vms: int | None = None) -> Result:
    """The first seed's result that shows the bug; called with the bug in."""
    blamed = MUTATIONS[name].blamed
    for seed in seeds:
        result = run(draw(seed, hosts, vms))
        if any(blamed in violation for violation in result.violations):
            return result
    raise AssertionError(f"{name} was not found in {seeds}")


def _fault_count(result: Result) -> int:
    scenario = result.scenario
    return len(scenario.incidents if isinstance(scenario, Fleet) else scenario.faults)


@pytest.mark.parametrize(
    ("name", "likely"), [("no-abort-record", 25), ("resume-at-once", 25), ("dropped-round", 0), ("impatient-target", 284)]
)
def test_a_known_bug_of_a_handover_is_found_within_a_hundred_seeds_and_made_small(name: str, likely: int) -> None:
    """The seed that shows it by the drawing of today is tried first."""
    with MUTATIONS[name].applied():
        found = find(name, (likely, *range(100)))
        smallest = shrink(found, run)
    assert smallest.violations and _fault_count(smallest) <= max(1, _fault_count(found))
    assert not run(smallest.scenario).violations, "without the bug it passes"


def test_a_vm_that_an_evacuation_forgets_is_found_and_the_fleet_made_small() -> None:
    with MUTATIONS["forgotten-vm"].applied():
        found = find("forgotten-vm", (17, *range(40)), hosts=4, vms=8)
        smallest = shrink(found, run)
    assert len(smallest.scenario.incidents) == 1 and smallest.scenario.incidents[0].kind is IncidentKind.DRAIN
    assert len(smallest.scenario.vms) <= 2
    assert not run(smallest.scenario).violations, "without the bug it passes"


def without_trouble(seed: int) -> Fleet:
    """A small fleet whose hosts are preempted and drained, and nothing else is wrong."""
    fleet = draw_fleet(seed, 4, 8)
    calm = (IncidentKind.MOVE, IncidentKind.DRAIN, IncidentKind.PREEMPT)
    return msgspec.structs.replace(fleet, incidents=tuple(one for one in fleet.incidents if one.kind in calm))


def test_an_evacuation_that_misses_a_deadline_which_could_be_met_is_found() -> None:
    preempted = [
        fleet for fleet in map(without_trouble, range(20)) if any(one.kind is IncidentKind.PREEMPT for one in fleet.incidents)
    ]
    with MUTATIONS["late-evacuation"].applied():
        results = [run(fleet) for fleet in preempted[:8]]
    assert any("missed the deadline" in violation for result in results for violation in result.violations)
    for fleet in preempted[:8]:
        assert not run(fleet).violations, "nothing is left behind where nothing was wrong"


LATE_STEER = Fleet(
    seed=63,
    hosts=("h1", "h2"),
    vms=(FleetVm(host="h1", guest=GuestShape(cells=16, blocks=4, tick_s=0.05, writes_per_tick=1, cell_bytes=65536)),),
    incidents=(
        Incident(kind=IncidentKind.EDGE_LATE, at_s=1.0, place="h2", duration_s=30.0),
        Incident(kind=IncidentKind.MOVE, at_s=2.0, other="h2"),
    ),
)


def test_an_edge_that_serves_late_requests_is_found() -> None:
    seeds = [LATE_STEER, *(msgspec.structs.replace(LATE_STEER, seed=seed) for seed in range(40))]
    with MUTATIONS["late-requests"].applied():
        assert any("edge" in violation for scenario in seeds for violation in run(scenario).violations)
    assert not any(run(scenario).violations for scenario in seeds[:5])


def test_a_target_that_claims_before_all_is_loaded_is_found_at_its_instant() -> None:
    """Few seeds strike in the instant between claim and resume: every call of one move is struck instead."""
    base = msgspec.structs.replace(draw_scenario(8), has_base_everywhere=True, moves=(Move(1, MigrationMode.AUTO, None, False),))
    sweep = [
        msgspec.structs.replace(base, faults=(Fault(FaultKind.KILL_TARGET_QEMU, 0, call, phase, 60.0, True),))
        for call in range(20, 40)
        for phase in ("before", "after")
    ]
    with MUTATIONS["claim-beside-load"].applied():
        found = [violation for scenario in sweep for violation in run(scenario).violations]
    assert any(MUTATIONS["claim-beside-load"].blamed in violation for violation in found), sorted(set(found))[:5]
    assert not [violation for scenario in sweep for violation in run(scenario).violations]


def test_a_target_that_does_not_read_whose_record_exists_is_found_at_its_instant() -> None:
    """Its own record comes late, the source's abort record is there already."""
    base = msgspec.structs.replace(draw_scenario(8), has_base_everywhere=True, moves=(Move(1, MigrationMode.AUTO, None, False),))
    late = Fault(FaultKind.STORE_LATE, 0, 5, "before", 300.0, False)
    sweep = [
        msgspec.structs.replace(base, faults=(late, Fault(FaultKind.RESET_NETWORK, 0, call, "before", 5.0, True)))
        for call in range(24, 40)
    ]
    with MUTATIONS["hasty-claim"].applied():
        found = [violation for scenario in sweep for violation in run(scenario).violations]
    assert any(MUTATIONS["hasty-claim"].blamed in violation for violation in found), sorted(set(found))[:5]
    assert not [violation for scenario in sweep for violation in run(scenario).violations]


def test_the_command_shows_a_failure_shrinks_it_and_ends_non_zero() -> None:
    printed = io.StringIO()
    with MUTATIONS["forgotten-vm"].applied(), contextlib.redirect_stdout(printed):
        assert main(["--seeds", "16..40", "--hosts", "4", "--vms", "8"]) == 1
    text = printed.getvalue()
    assert "VIOLATION" in text and "== shrunk to ==" in text and "-- the last events of vm-" in text
    scenario = eval(text[text.rindex("\nFleet(") :].rsplit("\n", 2)[0], dict(NAMES))
    with MUTATIONS["forgotten-vm"].applied():
        assert run(scenario).violations


@pytest.mark.parametrize("scenario", [draw(0), draw(1), draw(24)])
def test_a_scenario_is_printed_as_python_that_makes_it_again(scenario: AnyScenario) -> None:
    assert eval(literal(scenario), dict(NAMES)) == scenario
