"""Evacuating hosts: the facts for `policy.evacuation`, its plan made into moves, and the `drain` use case.

Looked at again after every change: a VM that found no target gets one as soon as a host appears or has room. A host that refused a
VM, or to which a move just failed, is not asked again for `REFUSED_S` if another one can be, and for `REFUSED_S_MIN` in any case.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

import msgspec

from architect.control.book import Change
from architect.control.fabric import Fabric, Refusal
from architect.control.followers import Progress
from architect.control.move_vm import plan_move
from architect.control.notices import leave_by_s
from architect.control.records import Desired, EventKind, HostRecord, MigrationRecord, MoveCause, VmRecord
from architect.control.rooms import rooms
from architect.control.views import DrainView
from architect.errors import CapacityError, UnavailableError
from architect.model.handover_state import BEFORE_COMMIT, HandoverState
from architect.model.ids import HostName, VmId
from architect.model.vm_state import VmState
from architect.policy.evacuation import EmptyingHost, Leaver, Move, Stuck, UnderWay, plan_evacuation

REFUSED_S = 10.0
REFUSED_S_MIN = 2.0
DRAIN_STUCK_S = 3.0


async def evacuate(fabric: Fabric) -> None:
    """Start what moves can be started now for hosts that empty, and write down why others cannot."""
    emptying = [host for record in fabric.book.hosts.values() if (host := _emptying(fabric, record)) is not None]
    cpus = {name: record.facts.cpus for name, record in fabric.book.hosts.items()}
    plan = plan_evacuation(emptying, rooms(fabric), fabric.clock.wall_s(), cpus) if emptying else ()
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
    held = fabric.fleet.held_bytes(record.name)
    leavers = tuple(
        _leaver(fabric, vm, held.get(vm.id, 0)) for vm in fabric.book.vms_on(record.name) if _must_leave(fabric, vm, record.name)
    )
    moves = [move for move in fabric.book.moves_at(record.name) if move.source == record.name]
    under_way = tuple(UnderWay(move.target, rest_bytes(move, held.get(move.vm, 0))) for move in moves)
    uplink = fabric.uplinks[record.name] = max(fabric.uplinks.get(record.name, 0.0), seen_rate(moves))
    due_s = leave_by_s(record.notice, fabric.clock.wall_s())
    return EmptyingHost(record.name, leavers, under_way, due_s, record.facts.cpus, uplink)


def _leaver(fabric: Fabric, vm: VmRecord, held_bytes: int) -> Leaver:
    now_s = fabric.clock.monotonic_s()
    refusals = {host: found for host, found in fabric.refused.get(vm.id, {}).items() if found.until_s > now_s}
    refused = {host: found.reason for host, found in refusals.items() if found.since_s + REFUSED_S_MIN > now_s}
    avoided = {host: found.reason for host, found in refusals.items() if host not in refused}
    return Leaver(vm.id, vm.request.memory_bytes, held_bytes, refused, avoided, len(refusals))


def seen_rate(moves: list[MigrationRecord]) -> float:
    """Bytes per second that these moves send together, as far as they have said."""
    looks = [move.report.look for move in moves if move.report is not None and move.state is HandoverState.PRECOPY]
    return float(sum(look.bandwidth_bytes_s for look in looks if look is not None))


def rest_bytes(move: MigrationRecord, held_bytes: int) -> int:
    """What a move under way has still to send, as far as it has said."""
    report = move.report
    if report is None or (look := report.look) is None:
        return held_bytes
    return look.dirty_bytes + look.disk_bytes if move.state in BEFORE_COMMIT else 0


def _must_leave(fabric: Fabric, vm: VmRecord, host: HostName) -> bool:
    """Whether the VM is on the host, can move, and does not yet."""
    can_move = vm.desired is Desired.RUNNING and vm.state in (VmState.RUNNING, VmState.PAUSED)
    return vm.host == host and can_move and fabric.book.move_of(vm.id) is None


def _is_cut_off(fabric: Fabric, vm: VmId) -> bool:
    """Whether the VM is on a host that empties but is not connected: what was tried last still explains its fate."""
    record = fabric.book.vms.get(vm)
    return record is not None and not fabric.fleet.is_here(record.host) and _must_leave(fabric, record, record.host)


def note_refusal(fabric: Fabric, move: MigrationRecord) -> None:
    """A move of an evacuation failed: ask other hosts first for a while."""
    if move.state is HandoverState.FAILED and move.cause is not MoveCause.USER:
        now_s = fabric.clock.monotonic_s()
        refusal = Refusal(f"did not take it ({move.reason})", now_s, now_s + REFUSED_S)
        fabric.refused.setdefault(move.vm, {})[move.target] = refusal


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
    there = {vm.id: vm.request.name for vm in fabric.book.living_on(record.name)}
    told = ""
    stuck_since_s: float | None = None
    seen = fabric.bell.count
    while left := fabric.book.living_on(record.name):
        there |= {vm.id: vm.request.name for vm in left}
        if (line := _drain_line(fabric, record.name, left)) != told:
            told = line
            yield Progress(line, 1 - len(left) / len(there))
        if not fabric.fleet.is_here(record.name):
            names = ", ".join(vm.request.name for vm in left)
            raise UnavailableError(f"host {name}", f"is not connected, and has {names} left", "they move when it is back")
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


def _drain_line(fabric: Fabric, host: HostName, left: list[VmRecord]) -> str:
    """How many VMs are left, how many of them move and how many cannot."""
    moving = sum(move.source == host and move.state in BEFORE_COMMIT for move in fabric.book.moves_at(host))
    stuck = sum(vm.id in fabric.stuck for vm in left)
    parts = [f"{len(left)} vm{'s' if len(left) != 1 else ''} left on {host}"]
    parts += [f"{count} {word}" for count, word in ((moving, "moving"), (stuck, "stuck")) if count]
    return ", ".join(parts)
