"""A simulated agent's side of the control plane: the real `ControlLink`, reports of what is here, and the requests it serves."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from architect.agent.control_link import ControlLink
from architect.agent.vm_record import VmPhase, VmRecord
from architect.errors import ConflictError
from architect.model.handover_state import HandoverState
from architect.model.ids import HostName, VmId
from architect.model.vm_state import VmState
from architect.runtime.rpc import Call, Channel, Handler
from architect.testing.sim_machine import QemuStatus
from architect.wire.agent_messages import (
    AcknowledgeNotice,
    Done,
    GiveUpMove,
    HostReport,
    MigrateVm,
    MigrationProgress,
    MigrationReport,
    RemoveVm,
    SourceGone,
    VmObservation,
)

if TYPE_CHECKING:
    from architect.testing.sim_agent import SimAgent

NOTICE_HEARD_AFTER_S = 3.0
STATES = {
    VmPhase.CREATING: VmState.CREATING,
    VmPhase.RUNNING: VmState.RUNNING,
    VmPhase.INCOMING: VmState.MIGRATING,
    VmPhase.OUTGOING: VmState.MIGRATING,
    VmPhase.DEPARTED: VmState.MIGRATING,
}


class SimAgentService:
    """Requests and reports of one agent."""

    def __init__(self, agent: SimAgent) -> None:
        self._agent = agent
        self._link: ControlLink | None = None
        self._began_at_s = agent.host.clock.monotonic_s()

    def changed(self) -> None:
        """Something changed: report soon."""
        if self._link is not None:
            self._link.changed()

    async def keep_in_touch(self) -> None:
        """Be connected to the control plane; for ever."""
        host = self._agent.host
        dial_control = host.dial_control
        assert dial_control is not None

        async def dial(handler: Handler) -> Channel:
            channel: Channel = await dial_control(host)(handler)
            return channel

        self._link = ControlLink(dial, host.facts, self.report, self.handle)
        await self._link.run()

    def report(self) -> HostReport:
        """The whole state of this host."""
        host = self._agent.host
        vms = tuple(self._observe(vm, record) for vm, record in host.records.items())
        has_heard = host.clock.monotonic_s() - self._began_at_s >= NOTICE_HEARD_AFTER_S
        notice = host.notice if has_heard else msgspec.UNSET
        return HostReport(HostName(host.name), max(host.memory_free_bytes, 0), vms, notice)

    def _observe(self, vm: VmId, record: VmRecord) -> VmObservation:
        moving = self._agent.source.report(vm)
        if moving is not None and moving.state is HandoverState.DONE:
            moving = None
        state = STATES.get(record.phase) or record.end_state or VmState.LOST
        qemu = self._agent.host.qemus.get(vm)
        pid = 1 if qemu is not None and qemu.status is not QemuStatus.DEAD else 0
        waits = self._agent.waits.get(vm, "") if state is VmState.RUNNING else ""
        return VmObservation(
            vm, state, record.held_term, record.spec, record.reason or waits, None, "", pid, moving or record.last_move,
            fills_from=record.fills_from, waits_because=waits,
        )  # fmt: skip

    async def handle(self, message: Any, body: bytes, call: Call | None) -> Any:
        """Serve one request (a `runtime.rpc` handler)."""
        assert call is not None, "the control plane sends no notes"
        host = self._agent.host
        match message:
            case MigrateVm():
                return await self._migrate(message, call)
            case GiveUpMove():
                self._agent.source.give_up(message.migration, message.reason)
                return Done()
            case SourceGone():
                self._agent.target.source_is_gone(message.source, message.why)
                return Done()
            case RemoveVm():
                if self._agent.source.is_moving(message.vm):
                    raise ConflictError(f"vm {message.vm}", "is being moved", "wait for the end of the move")
                host.destroy(message.vm)
                self.changed()
                return Done()
            case AcknowledgeNotice():
                host.world.say(host.process.name, "the notice may proceed")
                return Done()
            case _:
                raise ConflictError(f"request {type(message).__name__}", "is not simulated", "report this as a defect")

    async def migrate(self, request: MigrateVm, on_report: Any = None) -> MigrationReport:
        """Move a VM; a move that an agent before us ended is told by its id, too."""
        agent = self._agent
        if (taking := agent.taken_up.get(request.vm)) is not None:
            await taking.wait()
        record = agent.host.records.get(request.vm)
        if (
            record is not None
            and (last := record.last_move) is not None
            and last.id == request.migration
            and last.state.is_terminal
        ):
            return last
        return await agent.source.migrate(request, on_report)

    async def _migrate(self, message: MigrateVm, call: Call) -> MigrationProgress:
        reports: asyncio.Queue[MigrationReport] = asyncio.Queue()
        moving = asyncio.ensure_future(self.migrate(message, reports.put_nowait))
        getting = asyncio.ensure_future(reports.get())
        try:
            while True:
                await asyncio.wait((moving, getting), return_when=asyncio.FIRST_COMPLETED)
                if getting.done():
                    await call.item(MigrationProgress(getting.result()))
                    self.changed()
                    getting = asyncio.ensure_future(reports.get())
                if moving.done():
                    return MigrationProgress(moving.result())
        finally:
            moving.cancel()
            getting.cancel()
