"""The target of a handover as a pure state machine: state and event in, state out; `actions_of` says what to perform.

::

    RESERVED → STARTED → APPLY → (VERIFY) → (ATTACH) → LOAD → CLAIM → RESUME → FILL → RUNNING
        └─────────┴────────┴─────────┴─────────┴────────┘       │        ├───────┴→ UNDO → LOST
                        any failure, or an abort → UNDO ←───────┤        └→ HAND_BACK → UNDO → FAILED
                                                     → FAILED   └ the record is another's

CLAIM creates the ownership record `term + 1`; it is entered only when everything is loaded and verified, and it ends only when it
is known which record exists: no abort, silence or error ends it otherwise. RESUME is the very next action after our own record.

If the machine is found dead there, and was certainly never told to run, HAND_BACK creates record `term + 2`, naming the source:
its copy is as new as ours was. Where that is not certain, the VM may have been seen running, and is lost.
"""

from __future__ import annotations

from enum import StrEnum
from typing import assert_never

import msgspec

from architect.errors import ArchitectError, HandoverError, LostError, first_error
from architect.migration.handover_plan import HandoverLimits
from architect.model.handover_state import HandoverState
from architect.model.ownership import OwnershipRecord, RecordKind
from architect.wire.migration_messages import Cut, Prepare


class TargetStep(StrEnum):
    """Where the target stands."""

    RESERVED = "reserved"
    STARTED = "started"
    APPLY = "apply"
    VERIFY = "verify"
    ATTACH = "attach"
    LOAD = "load"
    CLAIM = "claim"
    RESUME = "resume"
    HAND_BACK = "hand-back"
    FILL = "fill"
    RUNNING = "running"
    UNDO = "undo"
    FAILED = "failed"
    LOST = "lost"

    @property
    def is_terminal(self) -> bool:
        """Whether the handover has ended."""
        return self in (TargetStep.RUNNING, TargetStep.FAILED, TargetStep.LOST)


class TargetAction(StrEnum):
    """What the session performs for the engine."""

    APPLY_CUT = "apply-cut"
    STOP_EXPORT = "stop-export"
    APPEND_LOG = "append-log"
    FULL_HASH = "full-hash"
    ATTACH_DISK = "attach-disk"
    LOAD = "load"
    CREATE_RECORD = "create-record"
    GIVE_BACK = "give-back"
    RESUME = "resume"
    WAIT_MEMORY = "wait-memory"
    WAIT_DISK = "wait-disk"
    RELAY = "relay"
    ABORT_MEMORY = "abort-memory"
    DESTROY = "destroy"


ACTIONS: dict[TargetStep, tuple[TargetAction, ...]] = {
    TargetStep.RESERVED: (),
    TargetStep.STARTED: (),
    TargetStep.APPLY: (TargetAction.APPLY_CUT, TargetAction.STOP_EXPORT, TargetAction.APPEND_LOG),
    TargetStep.VERIFY: (TargetAction.FULL_HASH,),
    TargetStep.ATTACH: (TargetAction.ATTACH_DISK,),
    TargetStep.LOAD: (TargetAction.LOAD,),
    TargetStep.CLAIM: (TargetAction.CREATE_RECORD,),
    TargetStep.RESUME: (TargetAction.RESUME,),
    TargetStep.HAND_BACK: (TargetAction.GIVE_BACK,),
    TargetStep.FILL: (TargetAction.WAIT_MEMORY, TargetAction.WAIT_DISK),
    TargetStep.RUNNING: (),
    TargetStep.UNDO: (),
    TargetStep.FAILED: (),
    TargetStep.LOST: (),
}

UNDO = (TargetAction.RELAY, TargetAction.ABORT_MEMORY, TargetAction.DESTROY)

HANDOVER_STATE: dict[TargetStep, HandoverState] = {
    TargetStep.RESERVED: HandoverState.PREPARING,
    TargetStep.STARTED: HandoverState.PRECOPY,
    TargetStep.APPLY: HandoverState.SWITCHOVER,
    TargetStep.VERIFY: HandoverState.SWITCHOVER,
    TargetStep.ATTACH: HandoverState.SWITCHOVER,
    TargetStep.LOAD: HandoverState.SWITCHOVER,
    TargetStep.CLAIM: HandoverState.SWITCHOVER,
    TargetStep.RESUME: HandoverState.COMMITTED,
    TargetStep.HAND_BACK: HandoverState.COMMITTED,
    TargetStep.FILL: HandoverState.POSTCOPY,
    TargetStep.RUNNING: HandoverState.DONE,
    TargetStep.FAILED: HandoverState.FAILED,
    TargetStep.LOST: HandoverState.LOST,
}
"""What a step is called outside; UNDO keeps the state in which the failure came."""


class TargetState(msgspec.Struct, frozen=True):
    """Where the target stands. `host` is this host; `record` exists for `term + 1`, or after a hand-back for `term + 2`."""

    request: Prepare
    host: str
    limits: HandoverLimits = HandoverLimits()
    step: TargetStep = TargetStep.RESERVED
    cut: Cut | None = None
    holds: bool = False
    undo: tuple[TargetAction, ...] = ()
    attempts: int = 0
    record: OwnershipRecord | None = None
    outside: HandoverState = HandoverState.PREPARING
    reason: str = ""
    code: str = ""

    @property
    def owns(self) -> bool:
        """Whether our record exists."""
        record = self.record
        if record is None or record.kind is not RecordKind.RUN or record.host != self.host:
            return False
        return record.term == self.request.term + 1

    @property
    def needs_source(self) -> bool:
        """Whether the VM is here to stay, and the guest, or QEMU itself, may have to wait for what is still at the source."""
        cut = self.cut
        is_postcopy = cut is not None and (cut.postcopy or cut.disk_postcopy)
        return is_postcopy and self.step in (TargetStep.RESUME, TargetStep.FILL)

    @property
    def may_abort(self) -> bool:
        """Whether the move can still be given up here: nobody has been told that we might take over."""
        return self.step in (
            TargetStep.RESERVED, TargetStep.STARTED, TargetStep.APPLY, TargetStep.VERIFY, TargetStep.ATTACH, TargetStep.LOAD,
        )  # fmt: skip


class Performed(msgspec.Struct, frozen=True):
    """The step's actions have succeeded."""


class Started(msgspec.Struct, frozen=True):
    """The machine waits for its memory and state."""


class Held(msgspec.Struct, frozen=True):
    """Packets may wait in the tap."""


class CutArrived(msgspec.Struct, frozen=True):
    """The source has stopped the VM and sent its state."""

    cut: Cut


class RecordKnown(msgspec.Struct, frozen=True):
    """This record exists for `term + 1`; in HAND_BACK for `term + 2`. `why` says why the VM was left to its source, if it was."""

    record: OwnershipRecord
    why: str = ""


class NeverRan(msgspec.Struct, frozen=True):
    """The machine is dead, and nobody has ever told it to run."""

    reason: str


class AbortAsked(msgspec.Struct, frozen=True):
    """The source gives up, or is gone."""

    reason: str


class Failed(msgspec.Struct, frozen=True):
    """An action has failed, or was late."""

    code: str
    reason: str

    @classmethod
    def of(cls, errors: BaseExceptionGroup[ArchitectError]) -> Failed:
        """By the first of the errors of what ran side by side."""
        first = first_error(errors)
        assert isinstance(first, ArchitectError)
        return cls(first.code, f"{first.thing}: {first.cause}")


TargetEvent = Performed | Started | Held | CutArrived | RecordKnown | NeverRan | AbortAsked | Failed


def actions_of(state: TargetState) -> tuple[TargetAction, ...]:
    """What to perform now, side by side."""
    if state.step is TargetStep.UNDO:
        return (state.undo[0],)
    if state.step is TargetStep.RESUME:
        assert state.owns, "no resume at the target without its own record"
    return ACTIONS[state.step]


def delay_s_of(state: TargetState) -> float:
    """How long to wait before performing again."""
    if not state.attempts:
        return 0.0
    return min(state.limits.back_off_s * 2.0 ** min(state.attempts, 16), state.limits.back_off_max_s)


def advance(state: TargetState, event: TargetEvent) -> TargetState:
    """The state after `event`. Pure; an abort that comes too late changes nothing."""
    assert not state.step.is_terminal, state.step
    if state.step is TargetStep.UNDO:
        return _after_undo(state, event)
    match event:
        case Started():
            assert state.step is TargetStep.RESERVED, state.step
            return _to(state, TargetStep.STARTED)
        case Held():
            return msgspec.structs.replace(state, holds=True)
        case CutArrived(cut):
            assert state.step is TargetStep.STARTED, state.step
            return _to(msgspec.structs.replace(state, cut=cut), TargetStep.APPLY)
        case RecordKnown():
            return _after_record(state, event)
        case NeverRan(reason):
            assert state.step is TargetStep.RESUME, state.step
            return _to(msgspec.structs.replace(state, code=HandoverError.code, reason=reason), TargetStep.HAND_BACK)
        case AbortAsked(reason):
            return _undo(state, "aborted", reason) if state.may_abort else state
        case Failed():
            return _after_failure(state, event)
        case Performed():
            return _to(state, _next(state))
        case _:
            assert_never(event)


def _next(state: TargetState) -> TargetStep:
    cut = state.cut
    assert cut is not None
    way = [TargetStep.APPLY, TargetStep.VERIFY, TargetStep.ATTACH, TargetStep.LOAD, TargetStep.CLAIM, TargetStep.RESUME]
    if not cut.full_hash:
        way.remove(TargetStep.VERIFY)
    if not cut.disk_postcopy:
        way.remove(TargetStep.ATTACH)
    way += [TargetStep.FILL] if cut.postcopy or cut.disk_postcopy else []
    way += [TargetStep.RUNNING]
    return way[way.index(state.step) + 1]


def _after_record(state: TargetState, event: RecordKnown) -> TargetState:
    record = event.record
    known = msgspec.structs.replace(state, record=record)
    if state.step is TargetStep.HAND_BACK:
        assert record.term > state.request.term + 1, record
        return _undo(known, state.code, f"given back to host {record.host}: {state.reason}")
    assert state.step is TargetStep.CLAIM, state.step
    if known.owns:
        return _to(known, TargetStep.RESUME)
    return _undo(known, "aborted", event.why or _taken(record))


def _taken(record: OwnershipRecord) -> str:
    """Why the VM is not ours, by the record that has our number."""
    match record.kind:
        case RecordKind.ABORT:
            return f"an attempt to move it was ended just then, and it stays on host {record.host}: move it again"
        case RecordKind.RUN:
            return f"host {record.host} has taken it over meanwhile"
        case RecordKind.END:
            return "it was ended meanwhile"
        case kind:
            assert_never(kind)


def _after_failure(state: TargetState, event: Failed) -> TargetState:
    again = msgspec.structs.replace(state, attempts=state.attempts + 1)
    match state.step:
        case TargetStep.CLAIM | TargetStep.HAND_BACK:
            return again
        case TargetStep.RESUME if again.attempts < state.limits.insist_attempts_max and event.code != LostError.code:
            return again
        case TargetStep.RESUME | TargetStep.FILL:
            return _undo(state, LostError.code, event.reason)
        case _:
            return _undo(state, event.code, event.reason)


def _undo(state: TargetState, code: str, reason: str) -> TargetState:
    undo = tuple(action for action in UNDO if action is not TargetAction.RELAY or (state.holds and not state.owns))
    return _to(msgspec.structs.replace(state, undo=undo, code=code, reason=reason), TargetStep.UNDO)


def _after_undo(state: TargetState, event: TargetEvent) -> TargetState:
    if isinstance(event, AbortAsked):
        return state
    reason = state.reason
    if isinstance(event, Failed):
        if state.undo[0] is TargetAction.DESTROY and state.attempts + 1 < state.limits.insist_attempts_max:
            return msgspec.structs.replace(state, attempts=state.attempts + 1)
        reason = f"{reason}; and {state.undo[0].value}: {event.reason}"
    rest = state.undo[1:]
    left = msgspec.structs.replace(state, undo=rest, reason=reason)
    if rest:
        return _to(left, TargetStep.UNDO)
    return _to(left, TargetStep.LOST if left.owns else TargetStep.FAILED)


def _to(state: TargetState, step: TargetStep) -> TargetState:
    return msgspec.structs.replace(state, step=step, attempts=0, outside=HANDOVER_STATE.get(step, state.outside))
