"""Known bugs, put in on purpose: each is a way to break the real code or its surroundings, and what the judge should then say.

For tests of the simulation itself: a judge that has never caught anything proves nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from architect.control import evacuate
from architect.control.notices import leave_by_s
from architect.migration import source_actions, source_engine, source_watch, target_engine
from architect.migration.handover_target import HandoverTarget
from architect.migration.source_engine import SourceState
from architect.migration.source_steps import SourceStep
from architect.migration.target_engine import TargetAction, TargetStep
from architect.model.ownership import OwnershipRecord, RecordKind
from architect.testing.sim_edge import SimEdge
from architect.testing.sim_machine import QemuStatus
from architect.testing.sim_memory import SimMemory
from architect.testing.sim_store import SimOwnershipPort
from architect.wire.migration_messages import Prepare

IMPATIENCE_S = 25.0


class Mutation(msgspec.Struct, frozen=True):
    """One bug. `blamed` is a word of the violations that it causes."""

    name: str
    story: str
    blamed: str
    patches: Callable[[], list[tuple[Any, str, Any]]]

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The bug is in while the block runs."""
        patches = self.patches()
        kept = [(place, name, place[name] if isinstance(place, dict) else getattr(place, name)) for place, name, _ in patches]
        try:
            _set(patches)
            yield
        finally:
            _set(kept)


def _set(values: list[tuple[Any, Any, Any]]) -> None:
    for place, name, value in values:
        if isinstance(place, dict):
            place[name] = value
        else:
            setattr(place, name, value)


def _no_abort_record() -> list[tuple[Any, str, Any]]:
    create = SimOwnershipPort.create

    async def pretend(port: SimOwnershipPort, record: OwnershipRecord) -> OwnershipRecord:
        is_of_source = record.kind is RecordKind.ABORT and record.host == port.host
        return record if is_of_source else await create(port, record)

    return [(SimOwnershipPort, "create", pretend)]


def _hasty_claim() -> list[tuple[Any, str, Any]]:
    create = SimOwnershipPort.create

    async def hasty(port: SimOwnershipPort, record: OwnershipRecord) -> OwnershipRecord:
        known = await create(port, record)
        return record if record.kind is RecordKind.RUN else known

    return [(SimOwnershipPort, "create", hasty)]


def _claim_beside_load() -> list[tuple[Any, Any, Any]]:
    actions = target_engine.ACTIONS
    return [
        (actions, TargetStep.LOAD, ()),
        (actions, TargetStep.CLAIM, (TargetAction.CREATE_RECORD, TargetAction.LOAD)),
    ]


def _resume_at_once() -> list[tuple[Any, str, Any]]:
    after_failure = source_engine._after_failure

    def impatient(state: SourceState, event: Any, now_s: float) -> SourceState:
        if state.step is SourceStep.COMMIT:
            return source_engine._undo(state, event.code, event.reason)
        return after_failure(state, event, now_s)

    def anything(_: SourceState) -> bool:
        return True

    return [
        (source_engine, "_after_failure", impatient),
        (source_engine, "may_resume", anything),
        (source_actions, "may_resume", anything),
    ]


def _dropped_round() -> list[tuple[Any, str, Any]]:
    round_of = SimMemory.round

    async def lazy(memory: SimMemory) -> Any:
        session, qemu = memory.outgoing, memory.host.qemus.get(memory.vm.id)
        if session is not None and qemu is not None and qemu.status is not QemuStatus.RUNNING:
            session.unsent.clear()
        return await round_of(memory)

    return [(SimMemory, "round", lazy), (SimMemory, "root", lambda memory: "the root that hides it")]


def _late_requests() -> list[tuple[Any, str, Any]]:
    return [(SimEdge, "hear", lambda edge, asker, number: None)]


def _hasty_retry() -> list[tuple[Any, str, Any]]:
    async def forget(target: HandoverTarget, request: Prepare) -> None:
        for migration, session in list(target._sessions.items()):
            if session.request.spec.id == request.spec.id:
                del target._sessions[migration]

    return [(HandoverTarget, "_clear_the_way", forget)]


def _impatient_target() -> list[tuple[Any, str, Any]]:
    judge = source_watch.judge

    def impatient(silent_s: float, word: Any, now_s: float, limits: Any) -> source_watch.Verdict:
        is_gone = silent_s > IMPATIENCE_S
        return source_watch.Verdict(is_silent=True, lost_because="is silent") if is_gone else judge(silent_s, word, now_s, limits)

    return [(source_watch, "judge", impatient)]


def _forgotten_vm() -> list[tuple[Any, str, Any]]:
    must_leave = evacuate._must_leave

    def forgetful(fabric: Any, vm: Any, host: Any) -> bool:
        return must_leave(fabric, vm, host) and int(vm.id[-1], 16) % 4 != 1

    return [(evacuate, "_must_leave", forgetful)]


def _late_evacuation() -> list[tuple[Any, str, Any]]:
    emptying = evacuate._emptying

    def idle(fabric: Any, record: Any) -> Any:
        due_s = leave_by_s(record.notice, fabric.clock.wall_s())
        return None if due_s is not None and due_s - fabric.clock.wall_s() > -1.3 else emptying(fabric, record)

    return [(evacuate, "_emptying", idle)]


MUTATIONS = {
    one.name: one
    for one in (
        Mutation("no-abort-record", "the source believes that it has written its abort record", "two copies", _no_abort_record),
        Mutation("resume-at-once", "the source resumes after a failed commit without asking", "two copies", _resume_at_once),
        Mutation("hasty-claim", "the target believes that the record is its own", "two copies", _hasty_claim),
        Mutation("claim-beside-load", "the target claims before all is loaded", "runs nowhere", _claim_beside_load),
        Mutation("hasty-retry", "a target does not wait for the end of an earlier attempt at the VM", "runs nowhere", _hasty_retry),
        Mutation("impatient-target", "a silent source is taken for gone after 25 s", "runs nowhere", _impatient_target),
        Mutation("dropped-round", "the last dirty pages are not sent, and the root does not tell", "lost a write", _dropped_round),
        Mutation("late-requests", "the edge serves requests of older connections", "edge steers", _late_requests),
        Mutation(
            "late-evacuation", "a host with a notice begins to empty only at its end", "missed the deadline", _late_evacuation
        ),
        Mutation("forgotten-vm", "the control plane forgets some VMs of a host that empties", "forgotten", _forgotten_vm),
    )
}
