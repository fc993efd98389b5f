"""What an agent does with what it finds when it starts: after a `kill -9` of its predecessor, or a reboot of the machine.

Level-triggered: each VM's record says what was going on, its processes say what is there, and the ownership log decides who may
run a VM that is found paused. A VM whose creation was cut off is undone: the control plane asks for it again.
"""

from __future__ import annotations

import asyncio
import logging

import msgspec

from architect.agent.host import Host
from architect.agent.hosted_vm import HostedVm
from architect.agent.moves import Moves
from architect.agent.vm_parts import VmParts, destroy_parts, find_parts
from architect.agent.vm_record import VmFolder, VmPhase, folders
from architect.agent.vm_table import VmTable
from architect.conduit.layout import PortState
from architect.errors import ArchitectError, NotFoundError
from architect.migration.found_vm import FoundVerdict, abort_record, resolve_found_paused, resolve_found_running
from architect.migration.handover_plan import HandoverPlan
from architect.migration.ports import decided_record
from architect.model.handover_state import MigrationMode
from architect.model.ids import HostName
from architect.model.vm_state import VmState
from architect.wire.agent_messages import MigrateVm
from architect.wire.migration_messages import Prepare

_log = logging.getLogger(__name__)
REATTACH_ATTEMPTS = 5
_GUEST_STOPPED = ("paused", "prelaunch", "inmigrate", "postmigrate")


async def recover_all(host: Host, table: VmTable, moves: Moves, group: asyncio.TaskGroup) -> None:
    """Take up every VM that has a folder here. One that cannot be taken up does not keep the others."""
    for folder in folders(host.vms_dir):
        try:
            await _recover(host, table, moves, group, folder)
        except ArchitectError as error:
            _log.error("%s: %s", folder.path.name, error)
    known = {vm.record.request.vni for vm in table}
    for vni in set(host.datapath.vnis()) - known:
        host.datapath.remove_vm(vni)


async def _recover(host: Host, table: VmTable, moves: Moves, group: asyncio.TaskGroup, folder: VmFolder) -> None:
    record = folder.read()
    if record is None or record.phase is VmPhase.CREATING or record.spec is None:
        _log.info("%s: its creation was cut off; undone", folder.path.name)
        vni = record.request.vni if record is not None else 0
        await destroy_parts(host, folder, vni, None, keep_log=False)
        return
    vm = HostedVm(host, folder, record)
    table.add(vm)
    if record.phase is VmPhase.OVER:
        return
    host.reserved[record.id] = record.request.memory_bytes
    try:
        parts = await _find(host, folder, vm)
    except NotFoundError as error:
        await _gone(table, vm, error)
        return
    if record.phase is VmPhase.INCOMING:
        vm.parts = parts
        group.create_task(_take_up_incoming(table, moves, vm))
    elif record.phase is VmPhase.OUTGOING:
        vm.watch(group, parts, fresh=False)
        group.create_task(_take_up_outgoing(table, moves, vm, parts))
    else:
        await _take_up_running(host, table, group, vm, parts)


async def _find(host: Host, folder: VmFolder, vm: HostedVm) -> VmParts:
    for attempt in range(REATTACH_ATTEMPTS):
        try:
            return await find_parts(host, folder, vm.spec)
        except NotFoundError:
            raise
        except ArchitectError as error:
            _log.warning("vm %s: %s (attempt %d)", vm.record.request.name, error, attempt + 1)
            await asyncio.sleep(0.5)
    return await find_parts(host, folder, vm.spec)


async def _gone(table: VmTable, vm: HostedVm, error: NotFoundError) -> None:
    """QEMU ended while no agent watched."""
    record = vm.record
    if record.phase is VmPhase.INCOMING:
        await vm.destroy()
        table.drop(record.id)
    elif record.exit_code is not None or record.stop_asked:
        await vm.finish(VmState.STOPPED if record.stop_asked else VmState.EXITED, "")
    else:
        await vm.finish(
            VmState.LOST, f"QEMU had ended when the agent of host {vm.host.config.name} came back; no checkpoint exists"
        )
    _log.info("vm %s: %s", record.request.name, error)


async def _take_up_running(host: Host, table: VmTable, group: asyncio.TaskGroup, vm: HostedVm, parts: VmParts) -> None:
    name, record = HostName(host.config.name), vm.record
    if await parts.machine.status() in _GUEST_STOPPED:
        at_stake = abort_record(record.id, record.term + 1, name, host.entropy.random_bytes(8).hex(), record.migration)
        decided = await decided_record(host.ownership, at_stake)
        verdict = resolve_found_paused(name, decided, is_serving=False)
        term = decided.term
    else:
        latest = await host.ownership.latest(record.id)
        verdict = resolve_found_running(name, latest)
        term = latest.term if latest is not None else record.term
    if verdict is not FoundVerdict.RUN:
        _log.warning("vm %s: another host owns it; this copy is destroyed", record.request.name)
        vm.parts = parts
        await vm.destroy()
        table.drop(record.id)
        return
    vm.note(term=term)
    if host.datapath.adopt(record.request.vni).state is not PortState.LOCAL:
        host.datapath.set_local(record.request.vni)
    await host.edge.steer(record.id, record.request.vni, term, host.config.address, "")
    await parts.machine.resume()
    vm.watch(group, parts, fresh=False)


async def _take_up_outgoing(table: VmTable, moves: Moves, vm: HostedVm, parts: VmParts) -> None:
    """The source of a handover: let the engine decide from the ownership log and from what its predecessor remembered."""
    try:
        plan = msgspec.json.decode((vm.folder.path / "handover.json").read_bytes(), type=HandoverPlan)
    except (OSError, msgspec.DecodeError):
        vm.note(phase=VmPhase.RUNNING)  # killed before the first effect of the handover
        return
    request = MigrateVm(plan.migration, vm.record.id, plan.target, MigrationMode(plan.mode), None, plan.verify)
    handover = msgspec.structs.replace(moves.outgoing(vm, request), plan=plan)
    is_running = await parts.machine.status() == "running"
    try:
        await moves.source.recover(handover, is_running=is_running)
    except ArchitectError as error:
        _log.error("vm %s: %s", vm.record.request.name, error)


async def _take_up_incoming(table: VmTable, moves: Moves, vm: HostedVm) -> None:
    """The target of a handover: the ownership log decides whether it is ours to run."""
    try:
        prepare = msgspec.json.decode((vm.folder.path / "prepare.json").read_bytes(), type=Prepare)
    except (OSError, msgspec.DecodeError):
        await vm.destroy()
        table.drop(vm.record.id)
        return
    try:
        await moves.target.recover(prepare, moves.incoming(vm, prepare))
    except ArchitectError as error:
        _log.error("vm %s: %s", vm.record.request.name, error)
