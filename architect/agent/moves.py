"""Moves: the handovers that leave and reach this host, between the engines (`migration`) and the VMs here.

Implements what the engines need of a host (`SourceHostPort`, `TargetHostPort`), serves other agents on the migration port, and
takes up what an agent before us had begun.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path

from architect.agent.disk_room import DiskRoom, shortage
from architect.agent.hold_points import HoldPoints
from architect.agent.host import Host
from architect.agent.hosted_vm import HostedVm
from architect.agent.move_shared import Bases, TargetDial, VmLog
from architect.agent.move_source import SourceMachine, SourceMemory
from architect.agent.move_target import TargetMachine, TargetMemory
from architect.agent.vm_record import VmFolder, VmPhase, VmRecord
from architect.agent.vm_table import VmTable
from architect.conduit.switch import SourceFlows, SteeredVm, TargetFlows
from architect.drafter.overlay import allocated_bytes
from architect.errors import ArchitectError, ConflictError, LostError, UnavailableError
from architect.migration.bandwidth_limit import chosen_limit
from architect.migration.handover_plan import HandoverPlan
from architect.migration.handover_source import HandoverSource
from architect.migration.handover_target import HandoverTarget
from architect.migration.ports import EdgePort
from architect.migration.source_ports import Handover, SourceFlowPort, SourcePorts
from architect.migration.target_ports import TargetPorts
from architect.model.handover_state import HandoverState
from architect.model.ids import HostName, MigrationId, VmId
from architect.model.ownership import OwnershipRecord, RecordKind
from architect.model.vm_spec import VmSpec
from architect.model.vm_state import VmState
from architect.runtime.rpc import Channel, peer_name
from architect.runtime.tls import server_context
from architect.wire.agent_messages import MigrateVm, MigrationReport
from architect.wire.migration_messages import MigrationMessage, Prepare

PEERS_MAX = 64
RECORD_TIMEOUT_S = 5.0
END_TIMEOUT_S = 5.0

_log = logging.getLogger(__name__)


class Moves:
    """All handovers of this host. `group` owns the VMs' tasks."""

    def __init__(self, host: Host, table: VmTable, group: asyncio.TaskGroup) -> None:
        self._host = host
        self._table = table
        self._group = group
        self.source = HandoverSource(self, host.clock, host.entropy)
        self.target = HandoverTarget(host.facts, self, host.clock, host.entropy)
        self._holds = HoldPoints(Path(host.config.state_dir))
        self._room = DiskRoom(host.config.name, host.vms_dir)
        self._peers = 0
        self.ready = asyncio.Event()
        self.known = asyncio.Event()

    async def run(self) -> None:
        """Serve other agents and own all handovers, until cancelled. From `ready` on handovers can be taken up; others are served
        once somebody has set `known`: the table has all that is here."""
        context = server_context(Path(self._host.config.tls_dir))
        config = self._host.config
        async with asyncio.TaskGroup() as group:
            group.create_task(self.source.run())
            group.create_task(self.target.run())
            await asyncio.sleep(0)
            self.ready.set()
            await self.known.wait()
            server = await asyncio.start_server(self._serve_peer, config.address, config.migration_port, ssl=context, limit=8 << 20)
            async with server:
                await server.serve_forever()

    async def _serve_peer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = peer_name(writer)
        role, _, host = name.partition(":")
        if role != "agent" or self._peers >= PEERS_MAX:
            _log.warning("migration port: refused %r", name or "a peer without a name")
            writer.close()
            return
        self._peers += 1
        connection = self.target.connection(HostName(host))
        try:
            await Channel(reader, writer, MigrationMessage, connection.handle, f"host {host}").run()
        except ArchitectError as error:
            _log.warning("migration port: %s", error)
        finally:
            self._peers -= 1
            connection.ended()

    # SourceHostPort

    async def open_handover(self, request: MigrateVm) -> Handover:
        """As the port says."""
        await self._holds.wait_planned(request.vm)
        vm = self._table.find(request.vm)
        if request.target.name == self._host.config.name:
            raise ConflictError(f"vm {vm.record.request.name}", f"is on host {request.target.name} already", "choose another host")
        await self._check_movable(vm)
        await self.target.let_go(request.vm)  # or it would steer back, by the same term
        term = await self._newest_term(vm)
        await vm.move_begins()
        vm.note(term=term, phase=VmPhase.OUTGOING, migration=request.migration, peer=request.target.name)
        # From now on the target may give back what it holds, however far the move comes.
        self._host.datapath.set_local(vm.record.request.vni, request.target.address)
        return self.outgoing(vm, request)

    async def _check_movable(self, vm: HostedVm) -> None:
        """Refuse a VM that does not run. One whose QEMU has just ended is refused for that, as soon as its end is written down."""
        name = f"vm {vm.record.request.name}"
        if vm.parts is not None and not vm.parts.machine.is_running:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(END_TIMEOUT_S):
                    await vm.ended.wait()
        if vm.record.end_state is VmState.LOST:
            raise LostError(name, vm.record.reason, f"`architect rm {vm.record.request.name}` forgets it")
        if vm.record.phase is not VmPhase.RUNNING:
            raise ConflictError(name, f"is {vm.record.end_state or vm.record.phase}", "move it when it runs")
        if vm.paused_because:
            raise ConflictError(name, f"is paused: {vm.paused_because}", "move it when it runs")
        if vm.parts is None or not vm.parts.machine.is_running:
            raise ConflictError(name, "has just ended or is being found again", "try again in a moment")

    async def _newest_term(self, vm: HostedVm) -> int:
        """The term by which the VM is ours. The log may know a newer one than we do: a target that its agent's successor gave up
        has written the record that keeps the VM here."""
        latest = await self.latest_record(vm.record.id)
        if latest is None or latest.term < vm.record.term:
            return vm.record.term
        if latest.kind is RecordKind.END or latest.host != self._host.config.name:
            cause = f"by record {latest.term} it is not this host's ({latest.kind.value} by {latest.host})"
            raise ConflictError(f"vm {vm.record.request.name}", cause, "see `architect events`")
        return latest.term

    def outgoing(self, vm: HostedVm, request: MigrateVm) -> Handover:
        """The handover of `request`, with its ports."""
        host = self._host
        now_s = host.clock.monotonic_s()
        plan = HandoverPlan(
            migration=request.migration,
            spec=vm.spec,
            term=vm.record.term,
            source=host.facts,
            target=request.target,
            mode=request.mode,
            started_at_s=now_s,
            deadline_at_s=None if request.deadline_s is None else now_s + request.deadline_s,
            verify=request.verify,
            bandwidth=chosen_limit(request.bandwidth_bytes_s, host.config.move_bandwidth_bytes_s),
            disk_bytes=allocated_bytes(vm.folder.overlay) if vm.folder.overlay.exists() else 0,
        )
        ports = SourcePorts(
            SourceMachine(vm),
            SourceMemory(vm, request.compression),
            SourceFlows(host.datapath, vm.record.request.vni, None, host.edge, host.clock),
            SteeredVm(host.edge, vm.spec.id, vm.spec.request.vni),
            VmLog(vm),
            Bases(host),
            host.ownership,
        )
        return Handover(plan, self._holds.around(ports, vm.spec.id), TargetDial(host, request.target))

    def keep(self, plan: HandoverPlan) -> None:
        """As the port says."""
        self._table.folder(plan.vm).keep("handover.json", plan)

    def forget(self, plan: HandoverPlan) -> None:
        """As the port says."""
        (self._table.folder(plan.vm).path / "handover.json").unlink(missing_ok=True)

    def ended(self, report: MigrationReport, term: int, keeps: bool) -> None:
        """As the port says."""
        vm = self._table.get(report.vm)
        if not keeps or vm is None:
            self._table.drop(report.vm)
        elif vm.record.phase is not VmPhase.OVER:
            vm.note_fact(phase=VmPhase.RUNNING, term=term, last_move=report, migration=MigrationId(""), peer="")
            if vm.parts is None or not vm.parts.machine.is_running:
                self._group.create_task(vm.close_books())

    # TargetHostPort

    async def wait_known(self, vm: VmId) -> None:
        """As the port says."""
        if (present := self._table.get(vm)) is not None:
            await present.found.wait()

    async def latest_record(self, vm: VmId) -> OwnershipRecord | None:
        """As the port says."""
        try:
            async with asyncio.timeout(RECORD_TIMEOUT_S):
                return await self._host.ownership.latest(vm)
        except TimeoutError as error:
            raise UnavailableError("ownership log", f"no answer in {RECORD_TIMEOUT_S:g} s", "try the move again") from error

    async def reserve(self, request: Prepare) -> TargetPorts:
        """As the port says."""
        spec = request.spec
        present = self._table.get(spec.id)
        if present is not None and present.record.phase is not VmPhase.INCOMING:
            raise ConflictError(f"vm {spec.request.name}", f"host {self._host.config.name} has it already", "see `architect ps`")
        self._room.check(request.disk_bytes)
        self._host.reserve(spec.id, spec.machine.memory_bytes)
        try:
            folder = VmFolder(self._host.vms_dir, spec.id)
            folder.make()
            record = VmRecord(
                spec.request, VmPhase.INCOMING, request.term, spec, migration=request.migration, peer=request.source.name
            )
            folder.write(record)
            folder.keep("prepare.json", request)
            vm = HostedVm(self._host, folder, record)
        except BaseException:
            VmFolder(self._host.vms_dir, spec.id).remove()
            self._host.release(spec.id)
            raise
        self._table.add(vm)
        return self.incoming(vm, request)

    def incoming(self, vm: HostedVm, request: Prepare) -> TargetPorts:
        """The ports to a VM that comes."""
        host = self._host
        vni = vm.record.request.vni
        self._room.expect(vm.record.id, vm.folder.overlay, request.disk_bytes)
        ports = TargetPorts(
            TargetMachine(host, vm, self._group),
            TargetMemory(host, vm),
            TargetFlows(host.datapath, vni, request.source.address),
            SteeredVm(host.edge, vm.record.id, vni),
            VmLog(vm),
            Bases(host),
            host.ownership,
        )
        return self._holds.around(ports, vm.record.id)

    def shortage(self) -> str:
        """As the port says."""
        return shortage(self._host.config.name, self._host.vms_dir)

    def taken_over(self, migration: MigrationId, spec: VmSpec, term: int) -> None:
        """As the port says."""
        vm = self._table.find(spec.id)
        vm.note_fact(phase=VmPhase.RUNNING, term=term, workload_started=True, arrived_by=migration)
        vm.log.reload()
        if vm.parts is not None and vm.guest is None:
            vm.watch(self._group, vm.parts, fresh=False)

    def waits(self, vm: VmId, why: str) -> None:
        """As the port says."""
        if (found := self._table.get(vm)) is not None:
            found.waits_because = why
            self._host.changed()

    def filled(self, vm: VmId) -> None:
        """As the port says."""
        self._room.arrived(vm)
        found = self._table.get(vm)
        if found is not None:
            (found.folder.path / "prepare.json").unlink(missing_ok=True)
            found.note_fact(migration=MigrationId(""), peer="")

    def lost(self, vm: VmId, reason: str) -> None:
        """As the port says."""
        self._room.arrived(vm)
        found = self._table.get(vm)
        if found is not None:
            term = found.record.term + (found.record.phase is VmPhase.INCOMING)  # its record exists, or it could not be lost
            found.note_fact(term=term)
            self._group.create_task(found.finish(VmState.LOST, reason))

    def outcome(self, migration: MigrationId) -> HandoverState | None:
        """As the port says."""
        for vm in self._table:
            if vm.record.arrived_by == migration and vm.record.migration != migration:  # or it still fills
                return HandoverState.DONE
            if vm.record.migration == migration and vm.record.end_state is VmState.LOST:
                return HandoverState.LOST
        return None

    def abandoned(self, vm: VmId, source: HostName, reason: str) -> None:
        """As the port says."""
        _log.info("vm %s did not come from host %s: %s", vm, source, reason)
        self._table.drop(vm)

    def claim_ports(self, vm: HostedVm) -> tuple[SourceFlowPort, EdgePort]:
        """What `HandoverSource.reclaim` needs of a VM that is here."""
        host, vni = self._host, vm.record.request.vni
        return SourceFlows(host.datapath, vni, None, host.edge, host.clock), SteeredVm(host.edge, vm.record.id, vni)

    # requests

    async def migrate(self, request: MigrateVm, on_report: object) -> MigrationReport:
        """Move a VM; `on_report` is called with each report. A move that an agent before us ended is told by its id, too."""
        assert callable(on_report)
        if (vm := self._table.get(request.vm)) is not None:
            await vm.taken_up.wait()
            last = vm.record.last_move
            if last is not None and last.id == request.migration and last.state.is_terminal:
                return last
        return await self.source.migrate(request, on_report)

    def moving(self, vm: VmId) -> MigrationReport | None:
        """How the VM's handover stands, if one leaves this host."""
        report = self.source.report(vm)
        return report if report is not None and report.state is not HandoverState.DONE else None

    def check_still(self, vm: VmId, name: str) -> None:
        """Refuse while the VM moves.

        Raises:
            ConflictError: it does.
        """
        if self.source.is_moving(vm):
            raise ConflictError(f"vm {name}", "is being moved", "wait for the end of the move")
