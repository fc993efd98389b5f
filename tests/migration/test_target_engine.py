"""The target's state machine: nothing before everything is verified, nothing between record and resume."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from architect.migration.target_engine import (
    ACTIONS,
    HANDOVER_STATE,
    AbortAsked,
    CutArrived,
    Failed,
    Held,
    NeverRan,
    Performed,
    RecordKnown,
    Started,
    TargetAction,
    TargetEvent,
    TargetState,
    TargetStep,
    actions_of,
    advance,
    delay_s_of,
)
from architect.model.handover_state import MigrationMode
from architect.model.ownership import RecordKind
from architect.wire.migration_messages import Cut, Prepare
from tests.migration.handover_values import MIGRATION, facts, record, spec

CUT = Cut(MIGRATION, "root", 1, 0)
FAILURE = Failed("host", "something broke")


def fresh() -> TargetState:
    return TargetState(Prepare(MIGRATION, spec(), 3, facts("a"), MigrationMode.AUTO), "b")


def loaded(cut: Cut = CUT) -> TargetState:
    state = advance(advance(advance(fresh(), Started()), Held()), CutArrived(cut))
    while state.step is not TargetStep.CLAIM:
        state = advance(state, Performed())
    return state


def end(state: TargetState) -> TargetState:
    while not state.step.is_terminal:
        state = advance(state, Performed())
    return state


def test_every_step_has_actions_and_a_name_outside() -> None:
    assert set(ACTIONS) == set(TargetStep)
    assert set(TargetStep) - set(HANDOVER_STATE) == {TargetStep.UNDO}


def test_everything_is_applied_verified_and_loaded_before_the_record_is_claimed() -> None:
    state = advance(advance(fresh(), Started()), CutArrived(Cut(MIGRATION, "root", 1, 0, disk_postcopy=True, full_hash="h")))
    taken = [state.step]
    while state.step is not TargetStep.CLAIM:
        state = advance(state, Performed())
        taken.append(state.step)
    assert taken == [TargetStep.APPLY, TargetStep.VERIFY, TargetStep.ATTACH, TargetStep.LOAD, TargetStep.CLAIM]


def test_the_very_next_action_after_its_own_record_is_the_resume() -> None:
    state = advance(loaded(), RecordKnown(record("b")))
    assert actions_of(state) == (TargetAction.RESUME,) and delay_s_of(state) == 0


def test_the_record_of_another_ends_in_undo_and_never_in_a_resume() -> None:
    for existing in (record("a", RecordKind.ABORT), record("c"), record("b", RecordKind.END), record("b", term=9)):
        state = advance(loaded(), RecordKnown(existing))
        assert state.step is TargetStep.UNDO
        assert end(state).step is TargetStep.FAILED


def test_an_unknown_record_is_asked_for_until_it_is_known_whatever_else_happens() -> None:
    state = loaded()
    for _ in range(50):
        state = advance(state, FAILURE)
        state = advance(state, AbortAsked("the source is gone"))
        assert state.step is TargetStep.CLAIM
    assert delay_s_of(state) == state.limits.back_off_max_s


@pytest.mark.parametrize("count", range(4))
def test_an_abort_or_a_failure_before_the_claim_undoes(count: int) -> None:
    for event in (AbortAsked("no"), FAILURE):
        state = advance(advance(fresh(), Started()), CutArrived(CUT))
        for _ in range(min(count, 1)):
            state = advance(state, Performed())
        state = advance(state, event)
        assert state.step is TargetStep.UNDO
        assert end(state).step is TargetStep.FAILED


def test_packets_that_wait_are_relayed_first_but_only_if_some_may_wait() -> None:
    held = advance(advance(advance(fresh(), Started()), Held()), AbortAsked("no"))
    assert held.undo == (TargetAction.RELAY, TargetAction.ABORT_MEMORY, TargetAction.DESTROY)
    assert TargetAction.RELAY not in advance(fresh(), AbortAsked("no")).undo


def test_a_resume_that_never_works_loses_the_vm_by_name() -> None:
    state = advance(loaded(), RecordKnown(record("b")))
    for _ in range(state.limits.insist_attempts_max):
        assert state.step is TargetStep.RESUME
        state = advance(state, FAILURE)
    assert end(state).step is TargetStep.LOST and "something broke" in state.reason


def test_a_precopy_runs_at_once_and_a_postcopy_fills_first() -> None:
    assert advance(advance(loaded(), RecordKnown(record("b"))), Performed()).step is TargetStep.RUNNING
    for cut in (Cut(MIGRATION, "r", 1, 0, postcopy=True), Cut(MIGRATION, "r", 1, 0, disk_postcopy=True)):
        state = advance(advance(loaded(cut), RecordKnown(record("b"))), Performed())
        assert state.step is TargetStep.FILL
        assert end(advance(state, FAILURE)).step is TargetStep.LOST
        assert advance(state, Performed()).step is TargetStep.RUNNING


def dead_before_it_ran() -> TargetState:
    return advance(advance(loaded(), RecordKnown(record("b"))), NeverRan("its QEMU ended"))


def test_a_machine_that_died_before_it_ran_is_given_back_to_the_source() -> None:
    state = dead_before_it_ran()
    assert actions_of(state) == (TargetAction.GIVE_BACK,)
    state = advance(state, RecordKnown(record("a", term=5)))
    assert state.undo[0] is TargetAction.RELAY, "what waits here is the source's again"
    ended = end(state)
    assert ended.step is TargetStep.FAILED and "given back to host a" in ended.reason and not ended.owns


def test_a_hand_back_is_asked_for_until_it_is_known_which_record_exists() -> None:
    state = dead_before_it_ran()
    for event in (FAILURE, AbortAsked("no")) * 20:
        state = advance(state, event)
        assert state.step is TargetStep.HAND_BACK
    assert end(advance(state, RecordKnown(record("c", term=5)))).step is TargetStep.FAILED


def test_a_machine_that_may_have_run_is_never_given_back() -> None:
    state = advance(advance(loaded(), RecordKnown(record("b"))), FAILURE)
    while not state.step.is_terminal:
        assert TargetAction.GIVE_BACK not in actions_of(state)
        state = advance(state, FAILURE)
    assert state.step is TargetStep.LOST


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(["good", "good", "fail", "abort", "theirs"]), max_size=40))
def test_whatever_happens_it_resumes_only_by_its_own_record(choices: list[str]) -> None:
    state = advance(advance(advance(fresh(), Started()), Held()), CutArrived(CUT))
    for choice in choices:
        if state.step.is_terminal:
            break
        if TargetAction.RESUME in actions_of(state):
            assert state.record is not None and state.record.host == "b"
        event: TargetEvent = Performed()
        if choice == "fail":
            event = FAILURE
        elif choice == "abort":
            event = AbortAsked("no")
        elif state.step is TargetStep.CLAIM:
            event = RecordKnown(record("a", RecordKind.ABORT) if choice == "theirs" else record("b"))
        state = advance(state, event)
    assert (state.step is TargetStep.RUNNING) <= state.owns
    assert msgspec.structs.asdict(state)["step"] is state.step
