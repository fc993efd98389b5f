"""What the control plane may ask of an agent: each request becomes calls on the VMs of this host."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from architect.agent.create_vm import create_vm
from architect.agent.exec_sessions import ExecSessions
from architect.agent.host import Host
from architect.agent.hosted_vm import HostedVm
from architect.agent.moves import Moves
from architect.agent.notice_watch import NoticeWatch
from architect.agent.vm_record import VmFolder, VmPhase, VmRecord
from architect.agent.vm_table import VmTable
from architect.errors import ArchitectError, CapacityError, ConflictError, UnavailableError
from architect.model.ids import HostName
from architect.model.vm_state import VmState
from architect.runtime.rpc import Call
from architect.wire.agent_messages import (
    AcknowledgeNotice,
    ClockIs,
    Done,
    ExecInput,
    ExecStart,
    GiveUpMove,
    HostReport,
    LogData,
    MigrateVm,
    MigrationProgress,
    MigrationReport,
    Progress,
    ReadClock,
    ReadLog,
    RemoveVm,
    RunVm,
    SourceGone,
    StopVm,
    VmStatus,
)

KILL_WAIT_S = 15.0
VMS_MAX = 256


class AgentService:
    """Serves requests. `group` owns the work that outlives its asker."""

    def __init__(self, host: Host, table: VmTable, moves: Moves, notices: NoticeWatch, group: asyncio.TaskGroup) -> None:
        self._host = host
        self._table = table
        self._moves = moves
        self._notices = notices
        self._group = group
        self._creating: dict[str, asyncio.Task[ArchitectError | None]] = {}
        self._execs = ExecSessions()

    def report(self) -> HostReport:
        """The whole state of this host."""
        vms = tuple(vm.observe(self._moves.moving(vm.record.id)) for vm in self._table)
        least_s = self._host.edge.round_trip.least_s
        rtt_ms = None if least_s is None else least_s * 1e3
        return HostReport(HostName(self._host.config.name), self._host.memory_free_bytes, vms, self._notices.notice, rtt_ms)

    async def handle(self, message: Any, body: bytes, call: Call | None) -> Any:
        """Serve one request (a `runtime.rpc` handler)."""
        assert call is not None, "the control plane sends no notes"
        match message:
            case RunVm():
                return await self._run(message, call)
            case StopVm():
                return await self._stop(message)
            case RemoveVm():
                return await self._remove(message)
            case MigrateVm():
                return await self._migrate(message, call)
            case GiveUpMove():
                self._moves.source.give_up(message.migration, message.reason)
                return Done()
            case SourceGone():
                self._moves.target.source_is_gone(message.source, message.why)
                return Done()
            case ReadClock():
                return ClockIs(self._host.clock.monotonic_s())
            case AcknowledgeNotice():
                await self._notices.acknowledge(message.notice)
                return Done()
            case ReadLog():
                return await self._read_log(message, call)
            case ExecStart():
                return await self._execs.start(self._table.find(message.vm), message, call)
            case ExecInput():
                return await self._execs.feed(message, body)
            case _:
                raise ConflictError(
                    f"request {type(message).__name__}", "is not one that an agent serves", "report this as a defect"
                )

    async def _run(self, message: RunVm, call: Call) -> VmStatus:
        """Create the VM, or join its creation, or report one that exists."""
        request = message.request
        vm = self._table.get(request.id)
        if vm is None:
            vm = self._begin(message)
        creation = self._creating.get(request.id)
        if creation is not None:
            told = ""
            while not creation.done():
                await asyncio.wait((creation,), timeout=0.2)
                if vm.progress != told:
                    told = vm.progress
                    await call.item(Progress(told))
            if (error := creation.result()) is not None:
                raise error
        return VmStatus(vm.observe(None))

    def _begin(self, message: RunVm) -> HostedVm:
        request = message.request
        if len(list(self._table)) >= VMS_MAX:
            raise CapacityError(f"host {self._host.config.name}", f"has {VMS_MAX} VMs", "choose another host")
        self._host.reserve(request.id, request.memory_bytes)
        folder = VmFolder(self._host.vms_dir, request.id)
        try:
            folder.make()
            record = VmRecord(request, VmPhase.CREATING, 0)
            folder.write(record)
            vm = HostedVm(self._host, folder, record)
        except BaseException:
            self._host.release(request.id)
            raise
        self._table.add(vm)
        self._creating[request.id] = self._group.create_task(self._create(vm))
        return vm

    async def _create(self, vm: HostedVm) -> ArchitectError | None:
        """Create; the outcome as a value, because this task is nobody's child who asked."""

        def progress(text: str) -> None:
            vm.progress = text
            self._host.changed()

        try:
            await create_vm(vm, self._group, progress)
        except ArchitectError as error:
            self._table.drop(vm.record.id)
            return error
        finally:
            vm.progress = ""
            self._creating.pop(vm.record.id, None)
        return None

    async def _stop(self, message: StopVm) -> VmStatus:
        vm = self._table.find(message.vm)
        if vm.record.phase is not VmPhase.OVER:
            self._moves.check_still(message.vm, vm.record.request.name)
            vm.note(stop_asked=True)
            await self._end_workload(vm, message.grace_s)
        return VmStatus(vm.observe(None))

    async def _end_workload(self, vm: HostedVm, grace_s: float) -> None:
        with contextlib.suppress(ArchitectError):
            await vm.live_guest().ask_to_stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await vm.ended.wait()
                return
        if vm.guest is not None:
            await vm.guest.power_off()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                await vm.ended.wait()
                return
        if vm.parts is not None:
            await vm.parts.machine.kill()
        try:
            async with asyncio.timeout(KILL_WAIT_S):
                await vm.ended.wait()
        except TimeoutError as error:
            raise UnavailableError(f"vm {vm.record.request.name}", "does not end", "see the agent's log") from error

    async def _remove(self, message: RemoveVm) -> Done:
        vm = self._table.get(message.vm)
        if vm is None:
            return Done()
        if vm.record.phase is not VmPhase.OVER:
            if not message.force:
                raise ConflictError(f"vm {vm.record.request.name}", "is not over", "stop it first, or use --force")
            self._moves.check_still(message.vm, vm.record.request.name)
        vm.record = vm.record if vm.record.phase is VmPhase.OVER else _forced(vm.record)
        await vm.destroy()
        self._table.drop(message.vm)
        return Done()

    async def _migrate(self, message: MigrateVm, call: Call) -> MigrationProgress:
        reports: asyncio.Queue[MigrationReport] = asyncio.Queue()
        moving = asyncio.ensure_future(self._moves.migrate(message, reports.put_nowait))
        getting = asyncio.ensure_future(reports.get())
        try:
            while True:
                await asyncio.wait((moving, getting), return_when=asyncio.FIRST_COMPLETED)
                if getting.done():
                    await call.item(MigrationProgress(getting.result()))
                    self._host.changed()
                    getting = asyncio.ensure_future(reports.get())
                if moving.done():
                    return MigrationProgress(moving.result())
        finally:
            moving.cancel()
            getting.cancel()

    async def _read_log(self, message: ReadLog, call: Call) -> Done:
        vm = self._table.find(message.vm)
        offset = message.offset
        while True:
            start, text = await asyncio.to_thread(vm.log.read_text, offset)
            if text:
                await call.item(LogData(start), text)
                offset = start + len(text)
            elif not message.follow or vm.log.is_closed:
                return Done()
            else:
                await vm.log.wait_grown()


def _forced(record: VmRecord) -> VmRecord:
    """The record of a VM that is deleted while it runs: its end is no loss to report."""
    return VmRecord(record.request, VmPhase.OVER, record.term, record.spec, VmState.STOPPED, reason="removed by force")
