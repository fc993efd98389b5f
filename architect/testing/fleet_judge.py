"""What must be true of a fleet once it has come to rest: DESIGN §4's invariants, told by VM and host.

Checked all along are those that only the moment shows: two running copies, a lost write, a state from another moment
(`sim_machine`). Here: every handover has ended; each VM runs exactly once, at the host that the newest record, the edge and the
control plane name, or is lost for a reason; packets reach it; nothing that was started is left; nobody was forgotten.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from architect.agent.vm_record import VmPhase
from architect.model.ids import VmId
from architect.model.vm_state import VmState
from architect.testing.sim_flow import FlowMode
from architect.testing.sim_host import SimHost
from architect.testing.sim_machine import QemuStatus, SimQemu, SimVm

if TYPE_CHECKING:
    from architect.testing.fleet import FleetSimulation

PROBE_S = 0.2


def busy_with(fleet: FleetSimulation) -> str:
    """What still goes on; empty at rest."""
    control = fleet.control
    if not control.process.is_alive:
        return "the control plane is not up"
    if moves := control.plane.fabric.book.open_moves():
        return f"{moves[0].id} of {moves[0].vm} is {moves[0].state.value}"
    for host in fleet.hosts.values():
        if not host.is_gone and (busy := _host_busy_with(fleet, host)):
            return busy
    for vm in fleet.vms:
        # A target whose source cannot say that it forwards nothing more waits for that a while.
        if vm.running() and (entry := fleet.edge.entry(vm.id)) is not None and entry.previous:
            return f"the edge still takes packets of {vm.id} from {entry.previous}"
    return ""


def _host_busy_with(fleet: FleetSimulation, host: SimHost) -> str:
    agent = host.agent
    if agent is None or not agent.is_listening or not fleet.control.plane.fabric.fleet.is_here(host.facts.name):
        return f"{host.name} is not connected"
    if host.plans:
        return f"{host.name} moves {next(iter(host.plans))}"
    for vm, record in host.records.items():
        if record.phase in (VmPhase.INCOMING, VmPhase.OUTGOING) or (vm in host.arriving and record.phase is not VmPhase.OVER):
            return f"{host.name} has {vm} as {record.phase.value}"
        if agent.source.is_moving(vm):
            return f"{host.name} moves {vm}"
    return ""


async def judge_end(fleet: FleetSimulation) -> None:
    """Judge the fleet at rest."""
    for vm in fleet.vms:
        _judge_vm(fleet, vm)
    for host in fleet.hosts.values():
        if not host.is_gone:
            _judge_host(fleet, host)
    _judge_evacuations(fleet)
    await _probe(fleet)


def _judge_vm(fleet: FleetSimulation, vm: SimVm) -> None:
    judge, running, newest = fleet.world.judge, vm.running(), fleet.ownership.newest(vm.id)
    assert newest is not None
    record = fleet.control.plane.fabric.book.vms.get(vm.id)
    if record is None:
        judge.blame(f"the control plane does not know {vm.id}")
        return
    if not running:
        if vm.id not in judge.excuses:
            judge.blame(f"{vm.id} runs nowhere, and no process of it was killed")
        # A host's silence is no proof: what was on one that is gone stays as it was last seen.
        if not record.state.is_terminal and not fleet.hosts[record.host].is_gone:
            judge.blame(f"{vm.id} is lost, the control plane says {record.state.value} on {record.host}")
        return
    for copy in running:
        _judge_copy(fleet, vm, copy)
        host = copy.host.name
        if newest.host != host:
            judge.blame(f"{host} runs {vm.id}, {newest.host} owns it by record {newest.term}")
        if record.host != host or record.state is not VmState.RUNNING:
            judge.blame(f"{host} runs {vm.id}, the control plane says {record.state.value} on {record.host} ({record.reason})")


def _judge_copy(fleet: FleetSimulation, vm: SimVm, copy: SimQemu) -> None:
    judge, host = fleet.world.judge, copy.host
    entry = fleet.edge.entry(vm.id)
    if entry is None or entry.host != host.name or entry.previous:
        judge.blame(f"the edge steers {vm.id} to {entry}, it runs at {host.name}")
    if copy.memory.is_alive and (copy.disk_missing or len(copy.memory.valid) < vm.page_count):
        judge.blame(f"{vm.id} at {host.name} never became whole")
    if host.logs.get(vm.id, b"") != vm.log:
        judge.blame(f"the output of {vm.id} at {host.name} is not what it wrote")
    outgoing = copy.memory.outgoing
    if copy.mirror is not None or copy.disk_is_frozen or (outgoing is not None and not outgoing.is_dead):
        judge.blame(f"{vm.id} at {host.name}: a mirror, an export or a memory session is left")
    if copy.counter != vm.counter:
        judge.blame(f"{vm.id} at {host.name} is at moment {copy.counter}, its users saw {vm.counter}")


def _judge_host(fleet: FleetSimulation, host: SimHost) -> None:
    judge = fleet.world.judge
    here = {vm.id for vm in fleet.vms if any(copy.host is host for copy in vm.running())}
    over = {vm for vm, record in host.records.items() if record.phase is VmPhase.OVER}
    for vm in sorted({*host.qemus, *host.memories, *host.flows.modes} - here):
        judge.blame(f"{host.name}: a process or a tap of {vm} is left")
    for vm in sorted({*host.logs, *host.records, *host.plans, *host.arriving} - here - over):
        judge.blame(f"{host.name}: files of {vm} are left")
    for vm in sorted(here):
        if vm not in host.flows.modes or host.flows.modes[vm][0] is not FlowMode.LOCAL:
            judge.blame(f"{host.name}: packets of {vm} are {host.flows.modes.get(vm)}, it runs there")
    for one in fleet.vms:
        stray = [copy for copy in one.copies if copy.host is host and copy.status is not QemuStatus.DEAD]
        if len(stray) > (one.id in here):
            judge.blame(f"{host.name}: a stray machine of {one.id} is left")


def _judge_evacuations(fleet: FleetSimulation) -> None:
    """A VM that should leave its host and does not is known to be stuck."""
    fabric = fleet.control.plane.fabric
    for record in fabric.book.vms.values():
        host = fabric.book.hosts.get(record.host)
        if host is None or record.state is not VmState.RUNNING or not (host.draining or host.notice is not None):
            continue
        if record.id not in fabric.stuck and not fleet.hosts[host.name].is_gone:
            fleet.world.judge.blame(f"{record.id} was forgotten on {host.name}, which is to be emptied")


async def _probe(fleet: FleetSimulation) -> None:
    """A packet for each VM that runs, through the edge."""
    targets: dict[VmId, SimHost] = {}
    for vm in fleet.vms:
        if vm.running() and (entry := fleet.edge.entry(vm.id)) is not None:
            targets[vm.id] = fleet.hosts[entry.host]
    probes = {vm: -number for number, vm in enumerate(targets, 1)}
    for vm_id, probe in probes.items():
        targets[vm_id].flows.arrive(vm_id, probe)
    await asyncio.sleep(PROBE_S)
    delivered = {packet for host in fleet.hosts.values() for packet in host.flows.delivered}
    for vm_id, probe in probes.items():
        if probe not in delivered:
            fleet.world.judge.blame(f"a packet for {vm_id} did not reach it")
