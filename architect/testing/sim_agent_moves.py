"""What the handover services need of a simulated agent: `SourceHostPort` and `TargetHostPort`, as `agent.moves` is them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from architect.agent.vm_record import VmPhase, VmRecord
from architect.errors import CapacityError, ConflictError, NotFoundError, UnavailableError
from architect.migration import Handover, HandoverPlan, SourcePorts, TargetPorts
from architect.migration.bandwidth_limit import chosen_limit
from architect.model.handover_state import HandoverState
from architect.model.ids import HostName, MigrationId, VmId
from architect.model.ownership import OwnershipRecord, RecordKind
from architect.model.vm_spec import VmSpec
from architect.model.vm_state import VmState
from architect.testing.sim_edge import SimEdgePort
from architect.testing.sim_machine import QemuStatus
from architect.testing.sim_network import SimDial
from architect.testing.sim_ports import SimBases, SimLog, SimSourceFlows, SimSourceMachine, SimSourceMemory
from architect.testing.sim_ports_target import SimTargetFlows, SimTargetMachine, SimTargetMemory
from architect.testing.sim_store import SimOwnershipPort
from architect.testing.sim_world import current_process
from architect.wire.agent_messages import MigrateVm, MigrationReport
from architect.wire.migration_messages import Prepare

if TYPE_CHECKING:
    from architect.testing.sim_agent import SimAgent

RECORD_TIMEOUT_S = 5.0


class SimAgentMoves:
    """All handovers of one agent."""

    def __init__(self, agent: SimAgent) -> None:
        self._agent = agent
        self._host = agent.host

    def source_ports(self, plan: HandoverPlan) -> SourcePorts:
        """The ports of a VM that leaves."""
        host, vm = self._host, plan.vm
        return SourcePorts(
            machine=SimSourceMachine(host, vm),
            memory=SimSourceMemory(host, vm),
            flows=SimSourceFlows(host, vm),
            edge=SimEdgePort(host.edge, vm, host.name),
            log=SimLog(host, vm),
            bases=SimBases(host),
            ownership=SimOwnershipPort(host.ownership, host.name),
        )

    def target_ports(self, vm: VmId) -> TargetPorts:
        """The ports of a VM that comes."""
        host = self._host
        return TargetPorts(
            machine=SimTargetMachine(host, vm),
            memory=SimTargetMemory(host, vm),
            flows=SimTargetFlows(host, vm),
            edge=SimEdgePort(host.edge, vm, host.name),
            log=SimLog(host, vm),
            bases=SimBases(host),
            ownership=SimOwnershipPort(host.ownership, host.name),
        )

    def dial(self, plan: HandoverPlan) -> SimDial:
        """The way to the target's agent."""
        host, target = self._host, plan.target.name
        return SimDial(host.network, host.name, target, host.peers[target].accept, self._agent.track)

    def resuming(self, vm: VmId) -> Callable[[], Awaitable[None]]:
        """`cont`, as a call into the VM's QEMU."""

        async def resume() -> None:
            if (qemu := self._host.qemus.get(vm)) is not None:
                qemu.resume()

        return resume

    async def open_handover(self, request: MigrateVm) -> Handover:
        """As the port says."""
        host, vm = self._host, request.vm
        record = host.records.get(vm)
        if record is None:
            raise NotFoundError(f"vm {vm}", f"is not on host {host.name}", "see `architect ps`")
        if record.phase is not VmPhase.RUNNING:
            raise ConflictError(f"vm {vm}", f"is {record.end_state or record.phase}", "move it when it runs")
        qemu = host.qemus.get(vm)
        if qemu is None or qemu.status is QemuStatus.DEAD or not self._is_taken_up(vm):
            raise ConflictError(f"vm {vm}", "has just ended or is being found again", "try again in a moment")
        await self._agent.target.let_go(vm)
        term = await self._newest_term(record)
        self._agent.note(vm, term=term, phase=VmPhase.OUTGOING, migration=request.migration, peer=request.target.name)
        now_s = host.clock.monotonic_s()
        plan = HandoverPlan(
            migration=request.migration,
            spec=host.world.vms[vm].spec,
            term=term,
            source=host.facts,
            target=request.target,
            mode=request.mode,
            started_at_s=now_s,
            deadline_at_s=None if request.deadline_s is None else now_s + request.deadline_s,
            verify=request.verify,
            bandwidth=chosen_limit(request.bandwidth_bytes_s, host.move_bandwidth_bytes_s),
            limits=host.limits,
        )
        return Handover(plan, self.source_ports(plan), self.dial(plan))

    def _is_taken_up(self, vm: VmId) -> bool:
        taking = self._agent.taken_up.get(vm)
        return taking is None or taking.is_set()

    async def _newest_term(self, record: VmRecord) -> int:
        latest = await self.latest_record(record.id)
        if latest is None or latest.term < record.term:
            return record.term
        if latest.kind is RecordKind.END or latest.host != self._host.name:
            raise ConflictError(f"vm {record.id}", f"by record {latest.term} it is not this host's", "see `architect events`")
        return latest.term

    def keep(self, plan: HandoverPlan) -> None:
        """As the port says."""
        current_process().check_alive()
        self._host.plans[plan.vm] = plan

    def forget(self, plan: HandoverPlan) -> None:
        """As the port says."""
        current_process().check_alive()
        self._host.plans.pop(plan.vm, None)

    def ended(self, report: MigrationReport, term: int, keeps: bool) -> None:
        """As the port says."""
        current_process().check_alive()
        vm, host = report.vm, self._host
        host.world.say(host.process.name, f"handover {report.id} {report.state.value} term {term}: {report.reason}", vm)
        record = host.records.get(vm)
        if not keeps or record is None:
            self._agent.drop(vm)
        elif record.phase is not VmPhase.OVER:
            self._agent.note(vm, phase=VmPhase.RUNNING, term=term, last_move=report, migration=MigrationId(""), peer="")
            self._agent.close_books(vm)

    async def wait_known(self, vm: VmId) -> None:
        """As the port says: what is found here is known before the first connection is served."""

    async def latest_record(self, vm: VmId) -> OwnershipRecord | None:
        """As the port says."""
        try:
            async with asyncio.timeout(RECORD_TIMEOUT_S):
                return await SimOwnershipPort(self._host.ownership, self._host.name).latest(vm)
        except TimeoutError as error:
            raise UnavailableError("ownership log", f"no answer in {RECORD_TIMEOUT_S:g} s", "try the move again") from error

    async def reserve(self, request: Prepare) -> TargetPorts:
        """As the port says."""
        spec, host = request.spec, self._host
        present = host.records.get(spec.id)
        if present is not None and present.phase is not VmPhase.INCOMING:
            raise ConflictError(f"vm {spec.id}", f"host {host.name} has it already", "see `architect ps`")
        if present is None and host.memory_free_bytes < spec.machine.memory_bytes:
            raise CapacityError(f"host {host.name}", "has too little memory free", "choose another host")
        host.records[spec.id] = VmRecord(
            spec.request, VmPhase.INCOMING, request.term, spec, migration=request.migration, peer=request.source.name
        )
        host.arriving[spec.id] = request
        self._agent.service.changed()
        return self.target_ports(spec.id)

    def shortage(self) -> str:
        """As the port says: disks are as large as they need to be."""
        return ""

    def taken_over(self, migration: MigrationId, spec: VmSpec, term: int) -> None:
        """As the port says."""
        self._host.world.say(self._host.process.name, f"has taken over by term {term}", spec.id)
        self._agent.note(spec.id, phase=VmPhase.RUNNING, term=term, workload_started=True, arrived_by=migration)

    def waits(self, vm: VmId, why: str) -> None:
        """As the port says."""
        self._agent.waits[vm] = why
        self._agent.service.changed()

    def filled(self, vm: VmId) -> None:
        """As the port says."""
        current_process().check_alive()
        if vm in self._host.records:
            self._host.arriving.pop(vm, None)
            self._agent.note(vm, migration=MigrationId(""), peer="")

    def lost(self, vm: VmId, reason: str) -> None:
        """As the port says."""
        record = self._host.records.get(vm)
        if record is not None:
            self._agent.note(vm, term=record.term + (record.phase is VmPhase.INCOMING))
            self._agent.finish(vm, reason)

    def outcome(self, migration: MigrationId) -> HandoverState | None:
        """As the port says."""
        for record in self._host.records.values():
            if record.arrived_by == migration and record.migration != migration:  # or it still fills
                return HandoverState.DONE
            if record.migration == migration and record.end_state is VmState.LOST:
                return HandoverState.LOST
        return None

    def abandoned(self, vm: VmId, source: HostName, reason: str) -> None:
        """As the port says."""
        self._host.world.say(self._host.process.name, f"{vm} does not come: {reason}", vm)
        self._agent.drop(vm)
