"""The source's state machine: its way, its undo, and when it may resume."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from architect.errors import HandoverError, LostError
from architect.migration import MirrorProgress
from architect.migration.source_engine import (
    BaseMissing,
    Failed,
    Measured,
    Performed,
    RecordKnown,
    SourceEvent,
    SourceState,
    TargetIs,
    TargetSaid,
    actions_of,
    advance,
    begun,
    can_be_given_up,
    delay_s_of,
    given_up,
    may_resume,
    recovered,
)
from architect.migration.source_steps import ACTIONS, EFFECT_OF, HANDOVER_STATE, ORDER, UNDO, Action, Effect, SourceStep
from architect.model.handover_state import TRANSITIONS, HandoverState, MigrationMode
from architect.model.ownership import OwnershipRecord, RecordKind
from tests.migration.handover_values import plan, record, stats

READY = MirrorProgress(True, 1, 1)
FAILURE = Failed("host", "something broke")


def good_event(state: SourceState) -> SourceEvent:
    """What comes when everything goes well."""
    actions = actions_of(state)
    if Action.BULK in actions or Action.ROUND in actions:
        return Measured(stats(10), READY)
    if Action.WRITE_ABORT in actions:
        return RecordKnown(record("a", RecordKind.ABORT))
    if {Action.AWAIT_FILLED, Action.ASK_STATUS, Action.ASK_WHETHER_RUNNING} & set(actions):
        return TargetIs(HandoverState.DONE, "")
    return Performed()


def walk(state: SourceState, fail_at: SourceStep | None = None) -> list[SourceState]:
    """All states from `state` to the end; the first time in `fail_at`, its actions fail."""
    states = [state]
    failed = False
    while not state.step.is_terminal:
        state = begun(state, 1.0)
        if state.step is fail_at and not failed:
            failed, event = True, FAILURE
        else:
            event = good_event(state)  # type: ignore[assignment]
        state = advance(state, event, 1.0)
        states.append(state)
        assert len(states) < 100
    return states


def steps(states: list[SourceState]) -> list[SourceStep]:
    return [state.step for state in states]


def test_every_step_has_actions_and_a_name_outside() -> None:
    assert set(ACTIONS) == set(SourceStep)
    assert set(SourceStep) - set(HANDOVER_STATE) == {SourceStep.UNDO}


def test_every_effect_has_an_undo_and_an_action_that_makes_it() -> None:
    assert set(EFFECT_OF.values()) == set(Effect)
    assert {effect for effect, _ in UNDO} == set(Effect) - {Effect.CUT_SENT}


def test_a_move_that_goes_well_takes_every_step_in_order_and_is_done() -> None:
    assert steps(walk(SourceState(plan()))) == [
        SourceStep.CONNECT, SourceStep.PREPARE, SourceStep.START_TARGET, SourceStep.OPEN, SourceStep.BULK, SourceStep.HOOK,
        SourceStep.HOLD, SourceStep.STEER, SourceStep.SETTLE, SourceStep.FORWARD, SourceStep.DRAIN, SourceStep.PAUSE,
        SourceStep.LAST_ROUND, SourceStep.CUT, SourceStep.COMMIT, SourceStep.QUIET, SourceStep.RELEASE, SourceStep.DESTROY,
        SourceStep.DONE,
    ]  # fmt: skip


def test_packets_are_forwarded_before_the_machine_stops_and_the_target_holds_before_the_edge_steers() -> None:
    taken = steps(walk(SourceState(plan())))
    assert taken.index(SourceStep.HOLD) < taken.index(SourceStep.STEER) < taken.index(SourceStep.FORWARD)
    assert taken.index(SourceStep.FORWARD) < taken.index(SourceStep.DRAIN) < taken.index(SourceStep.PAUSE)


def test_postcopy_copies_nothing_before_the_cut_and_serves_after_the_commit() -> None:
    states = walk(SourceState(plan(MigrationMode.POSTCOPY)))
    assert SourceStep.SERVE in steps(states) and SourceStep.QUIET not in steps(states)
    performed = {action for state in states if state.step is not SourceStep.UNDO for action in actions_of(state)}
    assert not performed & {Action.BULK, Action.ROUND, Action.START_MIRROR}
    assert states[-1].is_postcopy and states[-1].decision.disk_postcopy


def test_a_missing_base_is_sent_before_the_machine_is_started() -> None:
    state = advance(SourceState(plan(), step=SourceStep.PREPARE), BaseMissing(), 0)
    assert state.step is SourceStep.SEND_BASE
    assert advance(state, Performed(), 0).step is SourceStep.START_TARGET


def test_verify_hashes_between_the_cut_and_the_commit_but_never_in_postcopy() -> None:
    assert SourceStep.VERIFY in steps(walk(SourceState(plan(verify=True))))
    assert SourceStep.VERIFY not in steps(walk(SourceState(plan(MigrationMode.POSTCOPY, verify=True))))


@pytest.mark.parametrize("step", [step for step in ORDER if step.value not in ("quiet", "release", "wait", "base", "verify")])
def test_a_failure_before_the_cut_was_sent_undoes_all_that_was_begun_and_writes_no_record(step: SourceStep) -> None:
    states = walk(SourceState(plan()), fail_at=step)
    before = next(state for state in states if state.step is step)
    undone = [actions_of(state)[0] for state in states if state.step is SourceStep.UNDO]
    effects = begun(before, 0).effects
    assert undone == [action for effect, action in UNDO if effect in effects]
    assert SourceStep.RESOLVE not in steps(states)
    assert states[-1].step is SourceStep.FAILED and "something broke" in states[-1].reason


def ends_after_abort(state: SourceState, answer: SourceEvent) -> tuple[SourceState, list[Action]]:
    """The end of a move that fails in `state` and whose target answers that to `Abort`; and what was undone."""
    state, undone = advance(begun(state, 0), Failed("peer-lost", "the connection has ended"), 0), []
    while not state.step.is_terminal:
        undone.append(actions_of(state)[0])
        event = {Action.ABORT_TARGET: answer, Action.WRITE_ABORT: RecordKnown(record("a", RecordKind.ABORT))}.get(undone[-1])
        state = advance(state, event or Performed(), 0)
    return state, undone


def test_a_move_that_fails_without_the_targets_word_uses_up_its_number_last_of_all() -> None:
    copying = next(state for state in walk(SourceState(plan())) if state.step is SourceStep.BULK)
    end, undone = ends_after_abort(copying, FAILURE)
    assert undone[-1] is Action.WRITE_ABORT and undone.count(Action.WRITE_ABORT) == 1
    assert end.step is SourceStep.FAILED and end.reason == "the connection has ended", "what came after is no reason"
    assert end.record is not None and end.record.term == end.plan.term + 1, "the next move goes from there"
    assert Action.WRITE_ABORT not in ends_after_abort(copying, TargetSaid("its disk is full"))[1]


@pytest.mark.parametrize("seen", walk(SourceState(plan(verify=True))), ids=lambda state: state.step.value)
def test_a_move_can_be_given_up_until_its_cut_may_have_left_and_no_later(seen: SourceState) -> None:
    begun_here = seen if seen.step.is_terminal else begun(seen, 1.0)
    after = given_up(begun_here, "it is to be stopped")
    if Effect.CUT_SENT in begun_here.effects or seen.step.is_terminal:
        assert after == begun_here and not can_be_given_up(begun_here)
        return
    end = walk(after)[-1]
    assert (end.step, end.reason, end.code) == (SourceStep.FAILED, "it is to be stopped", HandoverError.code)
    assert given_up(after, "again") == after, "what is undone already goes on"


def test_a_failure_of_the_commit_writes_the_abort_record_before_anything_is_undone() -> None:
    states = walk(SourceState(plan()), fail_at=SourceStep.COMMIT)
    taken = steps(states)
    assert taken.index(SourceStep.RESOLVE) == taken.index(SourceStep.COMMIT) + 1
    assert Action.RESUME in [actions_of(state)[0] for state in states if state.step is SourceStep.UNDO]
    assert states[-1].step is SourceStep.FAILED


def test_a_commit_whose_answer_was_lost_ends_as_done_if_the_targets_record_exists() -> None:
    state = begun(SourceState(plan(), step=SourceStep.COMMIT), 0)
    state = advance(advance(state, FAILURE, 0), RecordKnown(record("b")), 0)
    assert state.step is SourceStep.CONFIRM and state.reason == ""
    assert advance(state, TargetIs(HandoverState.COMMITTED, "", runs=True), 0).step is SourceStep.QUIET
    assert steps(walk(state))[-1] is SourceStep.DONE


def confirming(now_s: float = 0.0) -> SourceState:
    """A source that knows that the target's record exists, and not whether the VM runs there."""
    state = begun(SourceState(plan(), step=SourceStep.COMMIT, effects=frozenset({Effect.PAUSED, Effect.STEERED})), now_s)
    return advance(advance(state, FAILURE, now_s), RecordKnown(record("b")), now_s)


def test_a_copy_is_kept_until_the_target_says_that_the_vm_runs() -> None:
    state = confirming()
    for event in (FAILURE, TargetIs(HandoverState.COMMITTED, "")) * 20:
        state = advance(state, event, 1.0)
        assert state.step is SourceStep.CONFIRM and delay_s_of(state) > 0
    silent = advance(state, FAILURE, 1.0 + plan().limits.status_hold_s)
    assert silent.step is SourceStep.QUIET, "its record exists: after a long silence it is believed"


def test_a_vm_that_is_given_back_runs_on_here_under_the_new_term() -> None:
    given_back = record("a", term=5)
    for state in (confirming(), SourceState(plan(), step=SourceStep.ASK, effects=frozenset(Effect))):
        kept = advance(state, RecordKnown(given_back), 0)
        assert kept.step is SourceStep.UNDO and Action.RESUME in kept.undo and may_resume(kept)
        states = walk(kept)
        assert states[-1].step is SourceStep.FAILED and "gave the VM back" in states[-1].reason and states[-1].record == given_back


def test_a_vm_that_has_gone_on_from_the_target_is_handed_over() -> None:
    state = advance(confirming(), RecordKnown(record("c", term=5)), 0)
    assert state.step is SourceStep.DESTROY and steps(walk(state))[-1] is SourceStep.DONE


def test_a_vm_that_a_third_host_took_over_is_not_asked_for_at_the_target() -> None:
    state = advance(SourceState(plan(), step=SourceStep.RESOLVE), RecordKnown(record("c")), 0)
    assert state.step is SourceStep.DESTROY and "host c" in state.reason


def test_a_record_that_is_not_known_is_asked_for_again_and_again_ever_slower() -> None:
    state = begun(SourceState(plan(), step=SourceStep.COMMIT), 0)
    state = advance(state, FAILURE, 0)
    delays = []
    for _ in range(1000):
        delays.append(delay_s_of(state))
        state = advance(state, FAILURE, 0)
        assert state.step is SourceStep.RESOLVE
    assert delays == sorted(delays) and delays[0] == 0 and delays[-1] == plan().limits.back_off_max_s


def test_the_source_may_not_resume_with_the_cut_sent_and_no_record_or_anothers_or_the_end() -> None:
    sent = SourceState(plan(), effects=frozenset({Effect.PAUSED, Effect.CUT_SENT}), step=SourceStep.UNDO, undo=(Action.RESUME,))
    for existing in (None, record("b"), record("a", RecordKind.END)):
        state = SourceState(plan(), effects=sent.effects, step=SourceStep.UNDO, undo=(Action.RESUME,), record=existing)
        assert not may_resume(state)
        with pytest.raises(AssertionError):
            actions_of(state)
    assert may_resume(SourceState(plan(), effects=sent.effects, record=record("a", RecordKind.ABORT)))


def test_an_ended_log_destroys_the_copy() -> None:
    state = SourceState(plan(), step=SourceStep.RESOLVE)
    state = advance(state, RecordKnown(record("a", RecordKind.END)), 0)
    assert state.step is SourceStep.DESTROY
    assert advance(state, Performed(), 0).step is SourceStep.LOST


def test_a_resume_that_fails_is_tried_again_and_given_up_at_last() -> None:
    state = SourceState(plan(), step=SourceStep.UNDO, undo=(Action.RESUME, Action.ABORT_TARGET), effects=frozenset({Effect.PAUSED}))
    for _ in range(plan().limits.insist_attempts_max - 1):
        state = advance(state, FAILURE, 0)
        assert state.undo[0] is Action.RESUME
    state = advance(state, FAILURE, 0)
    assert state.undo == (Action.ABORT_TARGET,) and "resume" in state.reason


@pytest.mark.parametrize("step", [SourceStep.QUIET, SourceStep.RELEASE])
def test_a_failure_after_the_commit_undoes_nothing(step: SourceStep) -> None:
    states = walk(SourceState(plan(), step=step, effects=frozenset(Effect)), fail_at=step)
    assert SourceStep.UNDO not in steps(states) and states[-1].step is SourceStep.DONE


def test_a_target_that_lost_the_vm_after_its_record_is_reported_lost() -> None:
    state = advance(SourceState(plan(), step=SourceStep.COMMIT), Failed(LostError.code, "its machine died"), 0)
    state = advance(state, RecordKnown(record("b")), 0)
    assert steps(walk(state))[-1] is SourceStep.LOST


def test_a_connection_lost_in_postcopy_asks_until_the_target_has_spoken_or_time_is_over() -> None:
    state = advance(SourceState(plan(), step=SourceStep.SERVE), FAILURE, 10.0)
    assert state.step is SourceStep.ASK
    assert advance(state, TargetIs(HandoverState.POSTCOPY, ""), 11.0).step is SourceStep.SERVE
    assert advance(state, TargetIs(HandoverState.LOST, "gone"), 11.0).code == LostError.code
    assert advance(state, FAILURE, 11.0).step is SourceStep.ASK
    given_up = advance(state, FAILURE, 10.0 + plan().limits.status_hold_s)
    assert given_up.step is SourceStep.DESTROY and "no word" in given_up.reason


def test_a_refused_cut_is_a_handover_error_and_undoes() -> None:
    late = SourceState(plan(MigrationMode.PRECOPY, deadline_at_s=3.5), step=SourceStep.ROUND, effects=frozenset({Effect.TARGET}))
    state = advance(late, Measured(stats(1_000_000), READY), 0.0)
    assert (state.step, state.code) == (SourceStep.UNDO, HandoverError.code)


def test_a_restarted_agent_undoes_all_for_a_machine_that_runs() -> None:
    state = recovered(plan(), is_running=True, is_serving=False, record=None)
    assert state.step is SourceStep.UNDO and Action.RESUME not in state.undo
    assert steps(walk(state))[-1] is SourceStep.FAILED


def test_a_restarted_agent_resolves_the_record_for_a_machine_that_is_paused() -> None:
    state = recovered(plan(), is_running=False, is_serving=False, record=None)
    assert state.step is SourceStep.RESOLVE
    kept = advance(state, RecordKnown(record("a", RecordKind.ABORT)), 0)
    assert Action.RESUME in kept.undo
    gone = advance(state, RecordKnown(record("b")), 0)
    assert gone.step is SourceStep.CONFIRM


def test_a_restarted_agent_serves_on_if_its_memory_process_does() -> None:
    state = recovered(plan(), is_running=False, is_serving=True, record=record("b"))
    assert state.step is SourceStep.SERVE


def test_an_old_plan_does_not_judge_a_newer_record() -> None:
    newer = record("a", RecordKind.RUN, term=9)
    state = recovered(plan(), is_running=False, is_serving=False, record=newer)
    assert state.step is SourceStep.UNDO and may_resume(state)


EVENTS = st.sampled_from(["good", "good", "good", "fail", "theirs", "ours", "give up"])


@settings(max_examples=300, deadline=None)
@given(mode=st.sampled_from(list(MigrationMode)), choices=st.lists(EVENTS, max_size=80))
def test_whatever_happens_the_source_never_resumes_what_may_run_elsewhere_and_always_can_end(
    mode: MigrationMode, choices: list[str]
) -> None:
    state = SourceState(plan(mode))
    decided: OwnershipRecord | None = None
    for choice in choices:
        if state.step.is_terminal:
            break
        if choice == "give up" and can_be_given_up(state):
            state = given_up(state, "it is to be stopped")
            continue
        state = begun(state, 1.0)
        actions = actions_of(state)
        if Action.RESUME in actions:
            assert Effect.CUT_SENT not in state.effects or (decided is not None and decided.host == "a")
        if Action.DESTROY in actions:
            assert decided is None or decided.host == "b"
            assert Effect.CUT_SENT in state.effects
        event: SourceEvent = good_event(state)
        if choice == "fail":
            event = FAILURE
        elif Action.WRITE_ABORT in actions:
            decided = decided or record("b" if choice == "theirs" else "a", RecordKind.ABORT)
            event = RecordKnown(decided)
        before = state.outside
        state = advance(state, event, 1.0)
        assert _is_reachable(before, state.outside), (before, state.outside)
    walk(state)


def _is_reachable(before: HandoverState, after: HandoverState) -> bool:
    """Whether the table of handover states leads from one to the other, several events being one step of the source."""
    seen, open_states = {before}, [before]
    while open_states:
        for following in TRANSITIONS[open_states.pop()].values():
            if following not in seen:
                seen.add(following)
                open_states.append(following)
    return after in seen
