"""What an agent does with what it finds when it starts: after a `kill -9` of its predecessor, or a reboot of the machine.

Level-triggered: each VM's record says what was going on, its processes say what is there, and the ownership log decides who may
run a VM that is found paused. A VM whose creation was cut off is undone: the control plane asks for it again.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from architect.agent.host import Host
from architect.agent.hosted_vm import HostedVm
from architect.agent.moves import Moves
from architect.agent.vm_parts import VmParts, destroy_parts, find_parts
from architect.agent.vm_record import VmFolder, VmPhase, folders
from architect.agent.vm_table import VmTable
from architect.errors import ArchitectError, NotFoundError
from architect.migration.found_vm import FoundVerdict, abort_record, resolve_found_paused, resolve_found_running
from architect.migration.handover_plan import HandoverLimits, HandoverPlan
from architect.migration.ports import decided_record
from architect.model.handover_state import MigrationMode
from architect.model.ids import HostName, MigrationId
from architect.wire.agent_messages import MigrateVm
from architect.wire.migration_messages import Prepare

_log = logging.getLogger(__name__)
REATTACH_S_MAX = 60.0
REATTACH_FILLING_S_MAX = HandoverLimits().unreached_s_max
RETRY_S = 0.5
RETRY_S_MAX = 4.0
_GUEST_STOPPED = ("paused", "prelaunch", "inmigrate", "postmigrate")
StructT = TypeVar("StructT")
_PLAN_DECODER = msgspec.json.Decoder(HandoverPlan)
_PREPARE_DECODER = msgspec.json.Decoder(Prepare)


async def recover_all(host: Host, table: VmTable, moves: Moves, group: asyncio.TaskGroup) -> None:
    """Know every VM that has a folder here, and take each up in a task of its own: one that is slow does not keep the others."""
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
        vm.log.end()
        vm.ended.set()
        return
    host.reserved[record.id] = record.request.memory_bytes
    vm.taken_up.clear()
    vm.found.clear()
    group.create_task(_take_up(_Finding(host, table, moves, group, vm)))


@dataclass
class _Finding:
    """What taking up one VM needs."""

    host: Host
    table: VmTable
    moves: Moves
    group: asyncio.TaskGroup
    vm: HostedVm


async def _take_up(finding: _Finding) -> None:
    """Take the VM up, however long ownership log or edge are away."""
    attempt = 0
    while True:
        try:
            await _take_up_once(finding)
            break
        except ArchitectError as error:
            _log.warning("vm %s: %s (attempt %d)", finding.vm.record.request.name, error, attempt + 1)
            await asyncio.sleep(min(RETRY_S * 2**attempt, RETRY_S_MAX))
            attempt += 1
    finding.vm.taken_up.set()
    finding.vm.found.set()


async def _take_up_once(finding: _Finding) -> None:
    vm, phase = finding.vm, finding.vm.record.phase
    plan = _read(vm, "handover.json", _PLAN_DECODER) if phase is VmPhase.OUTGOING else None
    prepare = _read(vm, "prepare.json", _PREPARE_DECODER)
    if vm.parts is None:
        vm.parts = await _find(finding.host, vm)
    if phase is VmPhase.INCOMING and prepare is None:
        await vm.destroy()  # nothing had been started for it
        finding.table.drop(vm.record.id)
    elif plan is not None:
        await _take_up_outgoing(finding, plan)
    elif prepare is not None and (vm.parts is not None or phase is VmPhase.INCOMING):
        await _take_up_incoming(finding, prepare)
    elif vm.parts is None:
        await _gone(vm)
    else:
        await _take_up_running(finding, vm.parts)


def _read(vm: HostedVm, name: str, decoder: msgspec.json.Decoder[StructT]) -> StructT | None:
    """What our predecessor kept under that name; None if nothing, or only a part."""
    try:
        return decoder.decode((vm.folder.path / name).read_bytes())
    except (OSError, msgspec.DecodeError):
        return None


async def _find(host: Host, vm: HostedVm) -> VmParts | None:
    """What runs of the VM; None if its QEMU has ended, also by us because it could not be reached for too long."""
    # One that fills may wait for a page of a source that is not reached.
    patience_s = REATTACH_FILLING_S_MAX if vm.record.fills_from else REATTACH_S_MAX
    end_s = host.clock.monotonic_s() + patience_s
    while True:
        try:
            return await find_parts(host, vm.folder, vm.spec)
        except NotFoundError:
            vm.machine_end = "ended while no agent watched"
            return None
        except ArchitectError as error:
            _log.warning("vm %s: %s", vm.record.request.name, error)
            if host.clock.monotonic_s() > end_s:
                vm.machine_end = f"could not be reached for {patience_s:g} s ({error.cause})"
                return None
            await asyncio.sleep(RETRY_S)


async def _gone(vm: HostedVm) -> None:
    """QEMU ended while no agent watched."""
    vm.machine_end = vm.machine_end or "ended while no agent watched"
    if vm.record.phase is VmPhase.OUTGOING:
        vm.note_fact(phase=VmPhase.RUNNING)  # killed before the first effect of the handover
    await vm.close_books()


async def _take_up_running(finding: _Finding, parts: VmParts) -> None:
    host, vm, record = finding.host, finding.vm, finding.vm.record
    name = HostName(host.config.name)
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
        await vm.destroy()
        finding.table.drop(record.id)
        return
    vm.note_fact(term=term, phase=VmPhase.RUNNING, migration=MigrationId(""), peer="")  # all of it is here
    await parts.machine.resume()
    ports = finding.moves.claim_ports(vm)
    finding.moves.source.reclaim(record.id, term, host.config.address, *ports)
    vm.watch(finding.group, parts, fresh=False)


async def _take_up_outgoing(finding: _Finding, plan: HandoverPlan) -> None:
    """The source of a handover: let the engine decide from the ownership log and from what its predecessor remembered."""
    vm, moves = finding.vm, finding.moves
    if vm.parts is not None:
        vm.watch(finding.group, vm.parts, fresh=False)
    request = MigrateVm(plan.migration, vm.record.id, plan.target, MigrationMode(plan.mode), None, plan.verify)
    handover = msgspec.structs.replace(moves.outgoing(vm, request), plan=plan)
    is_running = vm.parts is not None and await vm.parts.machine.status() == "running"
    moves.source.take_up(handover, is_running=is_running)


async def _take_up_incoming(finding: _Finding, prepare: Prepare) -> None:
    """The target of a handover, which may be filling: the ownership log decides whether it is ours to run."""
    if finding.vm.parts is not None:
        finding.vm.keep_memory(finding.group, finding.vm.parts)
    finding.vm.found.set()
    await finding.moves.target.recover(prepare, finding.moves.incoming(finding.vm, prepare))
