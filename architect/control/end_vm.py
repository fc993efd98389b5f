"""Ending a VM: stop it, or remove it with all it has. What is wanted is written down first, and holds until it is true.

A stop ends the VM and keeps its record, its log and its exit code; a move of it is given up, or waited for where that is too late
(`unwanted_move`), and then the VM is stopped where it is. A
removal leaves a tombstone at once; the reconciler clears every host that still reports the VM and the edge, now or when they
are back.
"""

from __future__ import annotations

import logging

import msgspec

from architect.control.fabric import Fabric
from architect.control.records import Desired, EventKind, VmRecord
from architect.control.sightings import note_answer
from architect.errors import ArchitectError, ConflictError, LostError, NotFoundError, UnavailableError, UsageError
from architect.model.ids import HostName, VmId
from architect.model.vm_state import VmState
from architect.wire.agent_messages import RemoveVm, StopVm, VmStatus
from architect.wire.edge_messages import ForgetVm

STOP_GRACE_S_MAX = 3600.0
STOP_EXTRA_S = 60.0
REMOVE_TIMEOUT_S = 60.0
RETRY_S = 1.0

_log = logging.getLogger(__name__)


async def stop_vm(fabric: Fabric, name: str, grace_s: float) -> VmRecord:
    """Stop the VM and wait until it is over. Idempotent: a VM that is over stays as it is.

    Raises:
        NotFoundError: there is no such VM.
        LostError: it is lost.
        ConflictError: it is being created, or was removed meanwhile.
        UnavailableError: its host does not answer; it is stopped once the host is back.
    """
    if not 0 <= grace_s <= STOP_GRACE_S_MAX:
        raise UsageError(f"--grace {grace_s}", f"is not in 0..{STOP_GRACE_S_MAX:.0f} seconds", "write for example 10")
    async with fabric.book.change() as change:
        record = fabric.book.find_vm(name)
        if record.state is VmState.LOST:
            raise LostError(f"vm {name}", record.reason or "is lost", f"`architect rm {name}` forgets it")
        if record.state.is_terminal:
            return record
        if record.state is VmState.CREATING:
            raise ConflictError(f"vm {name}", "is being created", f"wait for it, or `architect rm --force {name}`")
        change.put(msgspec.structs.replace(record, desired=Desired.STOPPED, stop_grace_s=grace_s))
    return await _wait_stopped(fabric, record.id, name, grace_s)


async def _wait_stopped(fabric: Fabric, vm: VmId, name: str, grace_s: float) -> VmRecord:
    deadline_s = fabric.clock.monotonic_s() + grace_s + STOP_EXTRA_S
    seen = fabric.bell.count
    while True:
        record = fabric.book.vms.get(vm)
        if record is None or record.is_tombstone:
            raise ConflictError(f"vm {name}", "was removed meanwhile", "nothing is left to do")
        if record.state is VmState.LOST:
            raise LostError(f"vm {name}", record.reason or "is lost", f"`architect rm {name}` forgets it")
        if record.state.is_terminal:
            return record
        if fabric.book.move_of(vm) is not None:
            deadline_s = max(deadline_s, fabric.clock.monotonic_s() + grace_s + STOP_EXTRA_S)
        elif not fabric.fleet.is_here(record.host) and fabric.fleet.silent_s(record.host) > 1:
            raise UnavailableError(f"host {record.host}", "is not connected", f"vm {name} is stopped as soon as it is back")
        if fabric.clock.monotonic_s() > deadline_s:
            raise UnavailableError(f"vm {name}", "has not stopped yet", f"look again with `architect inspect {name}`")
        seen = await fabric.bell.wait_rung(seen, 1.0)


async def carry_out_stop(fabric: Fabric, vm: VmId) -> None:
    """Ask the VM's host to stop it. Run as a job while STOPPED is wanted and the VM runs."""
    record = fabric.book.vms[vm]
    try:
        answer = await fabric.fleet.call(record.host, StopVm(vm, record.stop_grace_s), timeout_s=record.stop_grace_s + STOP_EXTRA_S)
    except ArchitectError as error:
        _log.info("stop of %s: %s", record.request.name, error)
        await fabric.clock.sleep(RETRY_S)
        return
    if isinstance(answer, VmStatus):
        await note_answer(fabric, record.host, answer.vm)


async def remove_vm(fabric: Fabric, name: str, *, force: bool) -> VmRecord:
    """Remove the VM; it exists no more when this returns, and host and edge are cleared.

    Raises:
        NotFoundError: there is no such VM.
        ConflictError: it is not over, and `force` is not given; or it moves just now.
    """
    async with fabric.book.change() as change:
        record = fabric.book.find_vm(name)
        if not record.state.is_terminal and not force:
            raise ConflictError(
                f"vm {name}", f"is {record.state.value}", f"`architect stop {name}` first, or `architect rm --force {name}`"
            )
        change.put(msgspec.structs.replace(record, desired=Desired.REMOVED))
        change.say(EventKind.VM_REMOVED, vm=record)
    fabric.stuck.pop(record.id, None)
    fabric.followers.finish(record.id, ConflictError(f"vm {name}", "was removed meanwhile", "run it again if you want it"))
    await _wait_cleared(fabric, record.id)
    return record


async def _wait_cleared(fabric: Fabric, vm: VmId) -> None:
    """Wait for the tombstone to go, but not for a host or an edge that is away."""
    deadline_s = fabric.clock.monotonic_s() + REMOVE_TIMEOUT_S
    seen = fabric.bell.count
    while (record := fabric.book.vms.get(vm)) is not None and fabric.clock.monotonic_s() < deadline_s:
        if not fabric.edge.is_connected or (record.host and not fabric.fleet.is_here(record.host)):
            return
        seen = await fabric.bell.wait_rung(seen, 1.0)


async def clear_tombstone(fabric: Fabric, vm: VmId, hosts: list[HostName]) -> None:
    """Remove what hosts and edge still have of a VM that is gone for its user, and then the tombstone. Run as a job."""
    record = fabric.book.vms[vm]
    for host in hosts:
        try:
            await fabric.fleet.call(host, RemoveVm(vm, force=True), timeout_s=REMOVE_TIMEOUT_S)
        except NotFoundError:
            pass
        except ArchitectError as error:
            _log.info("removal of %s: %s", record.request.name, error)
            await fabric.clock.sleep(RETRY_S)
            return
        fabric.fleet.amend(host, None, vm)
    if not await release_edge(fabric, vm):
        return
    if record.host in hosts or record.host not in fabric.book.hosts or not record.host:
        async with fabric.book.change() as change:
            change.delete(fabric.book.vms[vm])
        fabric.refused.pop(vm, None)


async def release_edge(fabric: Fabric, vm: VmId) -> bool:
    """End the VM's services at the edge, if they may be there; says whether none is left. Run as a job for VMs that are over."""
    if not fabric.book.vms[vm].at_edge:
        return True
    try:
        await fabric.edge.call(ForgetVm(vm))
    except ArchitectError as error:
        _log.info("edge services of %s: %s", vm, error)
        await fabric.clock.sleep(RETRY_S)
        return False
    async with fabric.book.change() as change:
        if (record := fabric.book.vms.get(vm)) is not None:
            change.put(msgspec.structs.replace(record, at_edge=False))
    return True
