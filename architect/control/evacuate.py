"""Evacuating hosts: the facts for `policy.evacuation`, its plan made into moves, and the `drain` use case.

Looked at again after every change: a VM that found no target gets one as soon as a host appears or has room. A host that refused a
VM, or to which a move just failed, is not asked again for `REFUSED_S`, so that the next best one is.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

import msgspec

from architect.control.book import Change
from architect.control.fabric import Fabric
from architect.control.followers import Progress
from architect.control.move_vm import plan_move
from architect.control.notices import leave_by_s
from architect.control.records import Desired, EventKind, HostRecord, MigrationRecord, MoveCause, VmRecord
from architect.control.rooms import rooms
from architect.control.views import DrainView
from architect.errors import CapacityError, UnavailableError
from architect.model.handover_state import HandoverState
from architect.model.ids import HostName, VmId
from architect.model.vm_state import VmState
from architect.policy.evacuation import EmptyingHost, Leaver, Move, Stuck, plan_evacuation

REFUSED_S = 10.0
DRAIN_STUCK_S = 3.0


async def evacuate(fabric: Fabric) -> None:
    """Start what moves can be started now for hosts that empty, and write down why others cannot."""
    emptying = [host for record in fabric.book.hosts.values() if (host := _emptying(fabric, record)) is not None]
    plan = plan_evacuation(emptying, rooms(fabric)) if emptying else ()
    stuck = {step.vm: step for step in plan if isinstance(step, Stuck)}
    for vm in set(fabric.stuck) - set(stuck):
        if not _is_cut_off(fabric, vm):
            del fabric.stuck[vm]
    news = [step for step in plan if isinstance(step, Move) or fabric.stuck.get(step.vm) != step.reason]
    if not news:
        return
    async with fabric.book.change() as change:
        for step in news:
            _write_step(fabric, change, step)
    fabric.stuck.update({vm: step.reason for vm, step in stuck.items()})


def _write_step(fabric: Fabric, change: Change, step: Move | Stuck) -> None:
    """Write one step of the plan, unless its VM has changed since the plan was made."""
    vm = fabric.book.vms.get(step.vm)
    if vm is None or not _must_leave(fabric, vm, step.source):
        return
    match step:
        case Move(source=source):
            host = fabric.book.hosts[source]
            plan_move(fabric, change, vm, step, MoveCause.NOTICE if host.notice is not None else MoveCause.DRAIN)
        case Stuck(reason=reason):
            change.say(EventKind.VM_STUCK, reason, vm=vm)


def _emptying(fabric: Fabric, record: HostRecord) -> EmptyingHost | None:
    if (record.notice is None and not record.draining) or not fabric.fleet.is_here(record.name):
        return None
    leavers = tuple(
        Leaver(vm.id, vm.request.memory_bytes, _refusals(fabric, vm.id))
        for vm in fabric.book.vms.values()
        if _must_leave(fabric, vm, record.name)
    )
    under_way = sum(move.source == record.name for move in fabric.book.open_moves())
    return EmptyingHost(record.name, leavers, under_way, leave_by_s(record.notice, fabric.clock.wall_s()))


def _must_leave(fabric: Fabric, vm: VmRecord, host: HostName) -> bool:
    """Whether the VM is on the host, can move, and does not yet."""
    can_move = vm.desired is Desired.RUNNING and vm.state in (VmState.RUNNING, VmState.PAUSED)
    return vm.host == host and can_move and fabric.book.move_of(vm.id) is None


def _is_cut_off(fabric: Fabric, vm: VmId) -> bool:
    """Whether the VM is on a host that empties but is not connected: what was tried last still explains its fate."""
    record = fabric.book.vms.get(vm)
    return record is not None and not fabric.fleet.is_here(record.host) and _must_leave(fabric, record, record.host)


def _refusals(fabric: Fabric, vm: VmId) -> dict[HostName, str]:
    now_s = fabric.clock.monotonic_s()
    refused = fabric.refused.get(vm, {})
    return {host: reason for host, (reason, until_s) in refused.items() if until_s > now_s}


def note_refusal(fabric: Fabric, move: MigrationRecord) -> None:
    """A move of an evacuation failed: ask other hosts first for a while."""
    if move.state is HandoverState.FAILED and move.cause is not MoveCause.USER:
        until_s = fabric.clock.monotonic_s() + REFUSED_S
        fabric.refused.setdefault(move.vm, {})[move.target] = (f"did not take it ({move.reason})", until_s)


async def set_draining(fabric: Fabric, name: str, *, draining: bool) -> HostRecord:
    """Take no VM on the host any more and move its VMs away, or open it again. Idempotent.

    Raises:
        NotFoundError: there is no such host.
    """
    async with fabric.book.change() as change:
        record = fabric.book.find_host(name)
        if record.draining != draining:
            record = msgspec.structs.replace(record, draining=draining)
            change.put(record)
            change.say(EventKind.HOST_DRAINING if draining else EventKind.HOST_OPENED, host=record.name)
    return record


async def drain_host(fabric: Fabric, name: str) -> AsyncGenerator[Progress | DrainView]:
    """Drain the host and tell how it empties, until nothing is left on it.

    Raises:
        NotFoundError: there is no such host.
        UnavailableError: it is not connected while VMs are left on it.
        CapacityError: no other host takes what is left; the host stays draining, and they move when one does.
    """
    record = await set_draining(fabric, name, draining=True)
    there = {vm.id: vm.request.name for vm in _living(fabric, record.name)}
    told = -1
    stuck_since_s: float | None = None
    seen = fabric.bell.count
    while left := _living(fabric, record.name):
        there |= {vm.id: vm.request.name for vm in left}
        if len(left) != told:
            told = len(left)
            yield Progress(f"{told} vm{'s' if told != 1 else ''} left on {name}")
        if not fabric.fleet.is_here(record.name):
            raise UnavailableError(f"host {name}", f"is not connected, {told} left on it", "they move when it is back")
        stuck = [vm for vm in left if vm.id in fabric.stuck]
        now_s = fabric.clock.monotonic_s()
        stuck_since_s = (stuck_since_s or now_s) if len(stuck) == len(left) else None
        if stuck_since_s is not None and now_s - stuck_since_s >= DRAIN_STUCK_S:
            names = ", ".join(vm.request.name for vm in stuck)
            raise CapacityError(
                f"host {name}", f"{names} cannot leave: {fabric.stuck[stuck[0].id]}", "add a host; the drain goes on by itself"
            )
        seen = await fabric.bell.wait_rung(seen, 1.0)
    moved = tuple(sorted(label for vm, label in there.items() if vm in fabric.book.vms))
    yield DrainView(name, moved, ())


def _living(fabric: Fabric, host: HostName) -> list[VmRecord]:
    return [vm for vm in fabric.book.vms.values() if vm.host == host and not vm.is_tombstone and not vm.state.is_terminal]
