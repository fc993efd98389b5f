"""The source of a handover as a pure state machine: state and event in, state out; `actions_of` says what to perform.

What must always hold, and is asserted here:

- Once the cut may have left this agent, the machine is resumed here only with a record for `term + 1` that names this host.
- Before that, the target has no device state and cannot commit: a failure undoes and resumes at once.
- Once the record names the other host, nothing is undone any more: the move is finished, or the VM is lost; unless the target gives
  the VM back by a further record, because its machine died before it was ever told to run. So the copy here is kept until the
  target has said that the VM runs there.
- Whatever was begun is undone on failure (`source_steps.UNDO`), and no failed undo stops the ones after it.
- A move that fails without the target's word uses up its number, last of all: an agent of the target may create the record later.

The driver calls `actions_of`, `begun`, performs, and gives the outcome to `advance`.
"""

from __future__ import annotations

from typing import assert_never

import msgspec

from architect.errors import HandoverError, LostError
from architect.migration.copy_watch import CopyWatch, told, with_decision
from architect.migration.cut_plan import CutDecision, CutVerdict, plan_cut
from architect.migration.handover_plan import HandoverPlan, MirrorProgress, RoundStats
from architect.migration.link_rate import LinkSample
from architect.migration.source_steps import (
    ACTIONS,
    EFFECT_OF,
    HANDOVER_STATE,
    INSISTED,
    ORDER,
    UNDO,
    UNTOLD,
    Action,
    Effect,
    SourceStep,
)
from architect.model.handover_state import HandoverState, MigrationMode
from architect.model.ownership import OwnershipRecord, RecordKind
from architect.wire.agent_messages import MoveDecision

ROUNDS_KEPT_MAX = 64


class SourceState(msgspec.Struct, frozen=True):
    """Where the source stands, and the facts that its next decision needs. `decisions` are those so far, for the report.

    `record` is the one that exists for `term + 1`, or a later one, once it is known; `reason` says why the move failed.
    """

    plan: HandoverPlan
    step: SourceStep = SourceStep.CONNECT
    effects: frozenset[Effect] = frozenset()
    rounds: tuple[RoundStats, ...] = ()
    round_count: int = 0
    watch: CopyWatch = CopyWatch()
    decisions: tuple[MoveDecision, ...] = ()
    decision: CutDecision = CutDecision(CutVerdict.ROUND)
    undo: tuple[Action, ...] = ()
    attempts: int = 0
    asking_since_s: float | None = None
    record: OwnershipRecord | None = None
    outside: HandoverState = HandoverState.PREPARING
    reason: str = ""
    code: str = ""

    @property
    def is_postcopy(self) -> bool:
        """Whether something is still missing at the target after the commit."""
        return self.decision.postcopy or self.decision.disk_postcopy

    @property
    def mirror(self) -> MirrorProgress | None:
        """How the disk's mirror was seen last."""
        return self.watch.mirror


class Performed(msgspec.Struct, frozen=True):
    """The step's actions have succeeded."""


class BaseMissing(msgspec.Struct, frozen=True):
    """PREPARE has succeeded, and the target lacks (a part of) the base disk."""


class Measured(msgspec.Struct, frozen=True):
    """BULK, or a step with a ROUND in it, has succeeded, or was stopped in its middle because `copy_watch` saw that it was time.
    `samples` are what the link carried meanwhile, since `lift` if that look lifted the bandwidth limit."""

    stats: RoundStats
    mirror: MirrorProgress | None
    samples: tuple[LinkSample, ...] = ()
    lift: MoveDecision | None = None


class RecordKnown(msgspec.Struct, frozen=True):
    """This record exists for `term + 1`, or a later one."""

    record: OwnershipRecord


class TargetIs(msgspec.Struct, frozen=True):
    """The target has said how it stands after the commit. `runs`: the VM has run there."""

    state: HandoverState
    reason: str
    runs: bool = False


class TargetSaid(msgspec.Struct, frozen=True):
    """Asked to undo the move, the target has told what it knows of the reason."""

    words: str


class Failed(msgspec.Struct, frozen=True):
    """An action has failed, or was late; `code` is its error's."""

    code: str
    reason: str


SourceEvent = Performed | BaseMissing | Measured | RecordKnown | TargetIs | TargetSaid | Failed


def actions_of(state: SourceState) -> tuple[Action, ...]:
    """What to perform now, side by side."""
    step, decision = state.step, state.decision
    if step is SourceStep.UNDO:
        action = state.undo[0]
        if action is Action.RESUME:
            assert may_resume(state), "no resume at the source without a record that keeps the VM here"
        return (action,)
    skipped: set[Action] = set()
    if _skips_copy(state):
        skipped |= {Action.BULK, Action.START_MIRROR, Action.POLL_MIRROR}
    if step in (SourceStep.HOLD, SourceStep.LAST_ROUND) and decision.postcopy:
        skipped.add(Action.ROUND)
    return tuple(action for action in ACTIONS[step] if action not in skipped)


def delay_s_of(state: SourceState) -> float:
    """How long to wait before performing: between polls, and longer with every attempt."""
    limits = state.plan.limits
    if state.step is SourceStep.WAIT:
        return limits.poll_interval_s
    if state.step in (SourceStep.ASK, SourceStep.CONFIRM) or state.attempts:
        return min(limits.back_off_s * 2.0 ** min(state.attempts, 16), limits.back_off_max_s)
    return 0.0


def begun(state: SourceState, now_s: float) -> SourceState:
    """The state once the step's actions may have had effects."""
    actions = actions_of(state) if state.step is not SourceStep.UNDO else ()
    effects = {EFFECT_OF[action] for action in actions if action in EFFECT_OF}
    watch = state.watch.mirror_begins(now_s) if Action.START_MIRROR in actions else state.watch
    return msgspec.structs.replace(state, effects=state.effects | effects, watch=watch)


def hurried(state: SourceState, deadline_at_s: float | None) -> SourceState:
    """The state with another deadline: a notice came, or went, while the move runs. The next decision goes by it."""
    return msgspec.structs.replace(state, plan=msgspec.structs.replace(state.plan, deadline_at_s=deadline_at_s))


def can_be_given_up(state: SourceState) -> bool:
    """Whether the source alone can still end the move: its cut has not left, and nothing is undone yet."""
    return not state.step.is_terminal and state.step is not SourceStep.UNDO and Effect.CUT_SENT not in state.effects


def given_up(state: SourceState, reason: str) -> SourceState:
    """The state once nobody wants the move any more: undone, or as it was where it is too late."""
    return _undo(state, HandoverError.code, reason) if can_be_given_up(state) else state


def may_resume(state: SourceState) -> bool:
    """Whether the machine may run here again."""
    if Effect.CUT_SENT not in state.effects:
        return True
    record = state.record
    return record is not None and record.kind is not RecordKind.END and record.host == state.plan.host


def advance(state: SourceState, event: SourceEvent, now_s: float) -> SourceState:
    """The state after `event`. Pure."""
    assert not state.step.is_terminal, state.step
    if state.step is SourceStep.UNDO:
        return _after_undo(state, event)
    match event:
        case Failed():
            return _after_failure(state, event, now_s)
        case RecordKnown(record):
            return _after_record(state, record)
        case BaseMissing():
            assert state.step is SourceStep.PREPARE
            return _to(state, SourceStep.SEND_BASE)
        case Measured():
            return _after_measure(state, event, now_s)
        case TargetIs():
            return _after_status(state, event, now_s)
        case Performed() | TargetSaid():
            return _after_success(state, now_s)
        case _:
            assert_never(event)


def recovered(plan: HandoverPlan, *, is_running: bool, is_serving: bool, record: OwnershipRecord | None) -> SourceState:
    """The state in which a restarted agent takes up a handover that its predecessor had begun.

    Whatever may have been begun counts as begun. A machine found running had not been stopped, or had been resumed: everything is
    undone. One found paused may have been handed over: the record is resolved first, exactly as after a lost answer.

    :param record: the VM's newest record, if its term is higher than the plan's.
    """
    everything = frozenset(Effect) if not is_running else frozenset(Effect) - {Effect.PAUSED, Effect.CUT_SENT}
    state = SourceState(
        plan,
        effects=everything,
        decision=CutDecision(CutVerdict.CUT, postcopy=is_serving),
        record=record,
        outside=HandoverState.SWITCHOVER,
        reason="the source's agent was restarted",
        code=HandoverError.code,
    )
    if is_running:
        return _undo(state, state.code, state.reason)
    resolving = _to(state, SourceStep.RESOLVE)
    return resolving if record is None else _after_record(resolving, record)


def _after_success(state: SourceState, now_s: float) -> SourceState:
    match state.step:
        case SourceStep.PREPARE:
            return _to(state, SourceStep.START_TARGET)
        case SourceStep.BULK:
            return _decide(state, now_s)
        case SourceStep.CUT:
            verifies = state.plan.verify and not state.decision.postcopy
            return _to(state, SourceStep.VERIFY if verifies else SourceStep.COMMIT)
        case SourceStep.COMMIT:
            return _committed(state)
        case SourceStep.DESTROY:
            return _to(state, SourceStep.LOST if state.code else SourceStep.DONE)
        case step:
            return _to(state, ORDER[step])


def _after_measure(state: SourceState, event: Measured, now_s: float) -> SourceState:
    watch = state.watch if event.lift is None else state.watch.lifted()
    if event.lift is None or event.samples:
        watch = watch.carried(event.samples, event.stats)
    measured = msgspec.structs.replace(
        state,
        rounds=(*state.rounds, event.stats)[-ROUNDS_KEPT_MAX:],
        round_count=state.round_count + 1,
        watch=watch.mirrored(event.mirror, now_s),
        decisions=state.decisions if event.lift is None else with_decision(state.decisions, event.lift),
    )
    if state.step in (SourceStep.HOLD, SourceStep.LAST_ROUND):
        return _to(measured, ORDER[state.step])
    return _decide(measured, now_s)


def _decide(state: SourceState, now_s: float) -> SourceState:
    plan = state.plan
    facts = state.watch.facts(plan, state.rounds, now_s)
    decision = plan_cut(facts, plan.limits)
    if plan.mode is MigrationMode.POSTCOPY and _skips_copy(state):
        decision = msgspec.structs.replace(decision, disk_postcopy=True)
    decisions = with_decision(state.decisions, told(plan, facts, decision, now_s, state.round_count))
    watch = state.watch.lifted() if decision.lifts_limit else state.watch
    decided = msgspec.structs.replace(state, decision=decision, decisions=decisions, watch=watch)
    match decision.verdict:
        case CutVerdict.ROUND:
            return _to(decided, SourceStep.ROUND)
        case CutVerdict.WAIT:
            return _to(decided, SourceStep.WAIT)
        case CutVerdict.CUT:
            return _to(decided, SourceStep.HOOK)
        case CutVerdict.REFUSE:
            return _undo(decided, HandoverError.code, decision.why)
        case verdict:
            assert_never(verdict)


def _after_failure(state: SourceState, event: Failed, now_s: float) -> SourceState:
    match state.step:
        case SourceStep.COMMIT:
            failed = msgspec.structs.replace(state, code=event.code, reason=event.reason)
            return _to(failed, SourceStep.RESOLVE)
        case SourceStep.RESOLVE:
            return msgspec.structs.replace(state, attempts=state.attempts + 1)
        case SourceStep.CONFIRM:
            return _unconfirmed(state, now_s)
        case SourceStep.DESTROY:
            if state.attempts + 1 < state.plan.limits.insist_attempts_max:
                return msgspec.structs.replace(state, attempts=state.attempts + 1)
            left = msgspec.structs.replace(state, reason=f"{state.reason}; the source's copy was not deleted: {event.reason}")
            return _to(left, SourceStep.LOST if state.code else SourceStep.DONE)
        case SourceStep.SERVE:
            return _to(msgspec.structs.replace(state, asking_since_s=now_s, reason=event.reason), SourceStep.ASK)
        case SourceStep.ASK:
            assert state.asking_since_s is not None
            if now_s - state.asking_since_s < state.plan.limits.status_hold_s:
                return msgspec.structs.replace(state, attempts=state.attempts + 1)
            reason = f"no word from host {state.plan.target.name} since it took over ({state.reason}; {event.reason})"
            return _to(msgspec.structs.replace(state, code=LostError.code, reason=reason), SourceStep.DESTROY)
        case SourceStep.QUIET | SourceStep.RELEASE:
            return _to(state, ORDER[state.step])  # the VM is the target's: nothing is undone any more
        case _:
            assert state.record is None or state.record.host == state.plan.host, "nothing is undone after the commit"
            return _undo(state, event.code, event.reason)


def _after_record(state: SourceState, record: OwnershipRecord) -> SourceState:
    assert state.step in (SourceStep.RESOLVE, SourceStep.CONFIRM, SourceStep.ASK), state.step
    known = msgspec.structs.replace(state, record=record)
    if record.kind is RecordKind.END:
        return _to(msgspec.structs.replace(known, code=LostError.code, reason="the VM was ended"), SourceStep.DESTROY)
    if record.host == state.plan.host:
        reason = state.reason or f"host {state.plan.target.name} gave the VM back"
        return _undo(known, state.code or HandoverError.code, reason)
    if record.term == state.plan.term + 1 and record.host != state.plan.target.name:
        reason = f"host {record.host} took the VM over by record {record.term}"
        return _to(msgspec.structs.replace(known, code=HandoverError.code, reason=reason), SourceStep.DESTROY)
    if state.code == LostError.code:
        # The target has said so itself: it wrote the record, and then its machine did not run.
        return _to(known, SourceStep.DESTROY)
    known = msgspec.structs.replace(known, code="", reason="")
    if record.term > state.plan.term + 1:
        return _to(known, SourceStep.DESTROY)  # it ran at the target, and has gone on from there
    return _committed(known) if known.is_postcopy else _to(known, SourceStep.CONFIRM)


def _unconfirmed(state: SourceState, now_s: float) -> SourceState:
    """Nobody has said yet that the VM runs at the target. One that is silent for too long is believed: its record exists."""
    since_s = state.asking_since_s if state.asking_since_s is not None else now_s
    if now_s - since_s < state.plan.limits.status_hold_s:
        return msgspec.structs.replace(state, asking_since_s=since_s, attempts=state.attempts + 1)
    return _committed(state)


def _committed(state: SourceState) -> SourceState:
    return _to(state, SourceStep.SERVE if state.is_postcopy else SourceStep.QUIET)


def _after_status(state: SourceState, event: TargetIs, now_s: float) -> SourceState:
    if state.step is SourceStep.CONFIRM and event.state is not HandoverState.LOST:
        return _committed(state) if event.runs or event.state is HandoverState.DONE else _unconfirmed(state, now_s)
    assert state.step in (SourceStep.SERVE, SourceStep.ASK, SourceStep.CONFIRM), state.step
    if event.state is HandoverState.DONE:
        return _to(msgspec.structs.replace(state, reason=""), SourceStep.RELEASE)
    if event.state.is_terminal:
        return _to(msgspec.structs.replace(state, code=LostError.code, reason=event.reason), SourceStep.DESTROY)
    # It still fills, but a connection broke: serve on as long as asking may last.
    return _to(state, SourceStep.SERVE) if state.step is SourceStep.ASK else _after_failure(state, Failed("peer", ""), now_s)


def _undo(state: SourceState, code: str, reason: str) -> SourceState:
    undo = tuple(action for effect, action in UNDO if effect in state.effects)
    failed = msgspec.structs.replace(state, code=code, reason=reason, undo=undo)
    return _to(failed, SourceStep.UNDO if undo else SourceStep.FAILED)


def _after_undo(state: SourceState, event: SourceEvent) -> SourceState:
    undone, reason, limits = state.undo[0], state.reason, state.plan.limits
    rest, record = state.undo[1:], state.record
    match event:
        case Failed():
            if undone in INSISTED and state.attempts + 1 < limits.insist_attempts_max:
                return msgspec.structs.replace(state, attempts=state.attempts + 1)
            if undone not in UNTOLD:
                reason = f"{reason}; and {undone.value}: {event.reason}"
        case TargetSaid(words):
            reason = f"{reason}; {words}"
        case RecordKnown(decided):
            record = decided if decided.host == state.plan.host and decided.kind is not RecordKind.END else record
    if undone is Action.ABORT_TARGET and record is None and isinstance(event, Failed):
        rest = (*rest, Action.WRITE_ABORT)
    left = msgspec.structs.replace(state, undo=rest, reason=reason, record=record)
    return _to(left, SourceStep.UNDO if rest else SourceStep.FAILED)


def _skips_copy(state: SourceState) -> bool:
    """Post-copy from the start copies nothing before the cut, neither memory nor disk."""
    return state.plan.mode is MigrationMode.POSTCOPY


def _to(state: SourceState, step: SourceStep) -> SourceState:
    outside = HANDOVER_STATE.get(step, state.outside)
    if state.outside is HandoverState.POSTCOPY and outside is HandoverState.COMMITTED:
        outside = HandoverState.POSTCOPY
    return msgspec.structs.replace(state, step=step, attempts=0, outside=outside)
