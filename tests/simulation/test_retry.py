"""A move that failed because an agent was killed is asked for again at once, and its leftover does not stand in the way.

Each call of one move is struck in turn, so that the leftover stands in each of its steps.
"""

from __future__ import annotations

import msgspec
import pytest

from architect.model.handover_state import HandoverState, MigrationMode
from architect.testing.ownership.projection import compare
from architect.testing.sim_mutations import MUTATIONS
from architect.testing.sim_scenario import HOSTS, RETRIES, Fault, FaultKind, Move, Scenario, draw_scenario
from architect.testing.simulator import VM, simulate

MOVE = Move(1, MigrationMode.AUTO, None, False, retries=RETRIES)
BASE = msgspec.structs.replace(draw_scenario(8), has_base_everywhere=True, moves=(MOVE,), faults=())


def struck(kind: FaultKind, call: int, phase: str) -> Scenario:
    """The move with its agent killed at that call."""
    return msgspec.structs.replace(BASE, faults=(Fault(kind, 0, call, phase, 60.0, True),))


@pytest.mark.parametrize("kind", [FaultKind.KILL_TARGET_AGENT, FaultKind.KILL_SOURCE_AGENT])
def test_a_retry_is_taken_as_soon_as_the_killed_agent_is_back(kind: FaultKind) -> None:
    failures = 0
    for call in range(1, 60, 6):
        for phase in ("before", "after"):
            result = simulate(struck(kind, call, phase))
            assert not result.violations, (call, phase, result.violations)
            reasons = [report.reason for report in result.reports]
            assert not [reason for reason in reasons if "taken over by host" in reason], (call, phase)
            assert not result.reports or result.reports[-1].state is HandoverState.DONE, (call, phase, reasons)
            failures += len(reasons) > 1
    assert failures > 3, "some moves failed and were asked for again"


@pytest.mark.parametrize("seed", [8, 9])
def test_a_target_whose_agent_was_killed_spoils_no_later_move_to_a_third_host(seed: int) -> None:
    """Its next agent writes the record that keeps the VM at its source while the later move copies."""
    failures = 0
    for call in range(1, 40, 4):
        moves = tuple(msgspec.structs.replace(MOVE, hop=hop, mode=MigrationMode.PRECOPY, retries=0) for hop in (1, 2))
        fault = Fault(FaultKind.KILL_TARGET_AGENT, 0, call, "before", 60.0, False)
        result = simulate(msgspec.structs.replace(BASE, seed=seed, pages=256, moves=moves, faults=(fault,)))
        assert not result.violations, (call, result.violations)
        first, *rest = result.reports
        if first.state is HandoverState.FAILED:
            failures += 1
            assert [report.state for report in rest] == [HandoverState.DONE], (call, [report.reason for report in rest])
    assert failures > 3, "some first moves failed"


def test_what_retries_do_is_what_the_ownership_model_allows() -> None:
    for call in (4, 16, 25, 31):
        deviation = compare(simulate(struck(FaultKind.KILL_TARGET_AGENT, call, "before")).events, VM, HOSTS[0])
        assert deviation is None, f"call {call}: {deviation}"


def test_a_target_that_does_not_wait_for_the_end_of_its_leftover_is_found() -> None:
    sweep = [struck(FaultKind.KILL_TARGET_AGENT, call, "before") for call in (4, 16, 25, 31)]
    with MUTATIONS["hasty-retry"].applied():
        found = [violation for scenario in sweep for violation in simulate(scenario).violations]
    assert any(MUTATIONS["hasty-retry"].blamed in violation for violation in found), sorted(set(found))[:5]
