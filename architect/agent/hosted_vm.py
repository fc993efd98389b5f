"""HostedVm: one VM on this host, from its creation or arrival to its end or departure.

It owns the VM's record, log and parts, and one task that watches the machine and the guest. Effects go in the order: record
first, then effect, so that a successor of a killed agent knows what it finds. Handovers take the VM out of its own hands
(`moving`): while one runs, nobody else pauses, stops or destroys it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

import msgspec

from architect.agent.disk_watch import DiskWatch
from architect.agent.guest_session import GuestSession
from architect.agent.host import Host
from architect.agent.log_store import LogStore
from architect.agent.memory_watch import MemoryEvents, keep_memory
from architect.agent.vm_parts import VmParts, destroy_parts, ended_words
from architect.agent.vm_record import VmFolder, VmPhase, VmRecord
from architect.drafter.disk_mirror import JOB as MIRROR_JOB
from architect.drafter.disk_postcopy import RemoteState, remote_state
from architect.drafter.machine_event import BlockJobEnded, DiskFailed, MachineEnded
from architect.errors import ArchitectError, ConflictError, HostError, InternalError
from architect.model.sizes import MIB, round_up
from architect.model.vm_spec import VmSpec
from architect.model.vm_state import VmState
from architect.silo.memory_client import MemoryProcess
from architect.wire.agent_messages import MigrationReport, VmObservation

_log = logging.getLogger(__name__)
EXIT_GRACE_S = 5.0
STAT_BLOCK_BYTES = 512
HELD_STEP_BYTES = 8 * MIB


class HostedVm:
    """One VM on this host."""

    def __init__(self, host: Host, folder: VmFolder, record: VmRecord) -> None:
        self.host = host
        self.folder = folder
        self.record = record
        self.parts: VmParts | None = None
        self.guest: GuestSession | None = None
        self.disk: DiskWatch | None = None
        self.progress = ""
        self.paused_because = ""
        self.waits_because = ""
        self.memory_replaced: Callable[[MemoryProcess], Awaitable[None]] | None = None
        self.machine_end = ""
        self.ended_in_start = ""
        self.mirror_error = ""
        self._ended_memory: MemoryProcess | None = None
        self.ended = asyncio.Event()
        self.taken_up = asyncio.Event()
        self.taken_up.set()
        self.found = asyncio.Event()
        self.found.set()
        self.log = LogStore(folder.log)
        self._watching: asyncio.Task[None] | None = None
        self._keeping: asyncio.Task[None] | None = None

    @property
    def spec(self) -> VmSpec:
        """The VM's spec; it is there once preparation is done."""
        if self.record.spec is None:
            raise InternalError(f"vm {self.record.request.name}", "has no spec yet", "report this as a defect")
        return self.record.spec

    def note(self, **changes: object) -> None:
        """Write the record with these fields changed, and tell."""
        record = msgspec.structs.replace(self.record, **changes)
        self.folder.write(record)
        self.record = record
        self.host.changed()

    def note_fact(self, **changes: object) -> None:
        """Note what has come about already. A disk that is full does not undo it: the next note writes this, too, and a successor
        of this agent that finds an older record asks the ownership log and the VM's processes."""
        try:
            self.note(**changes)
        except HostError as error:
            _log.error("vm %s: %s", self.record.request.name, error)
            self.record = msgspec.structs.replace(self.record, **changes)
            self.host.changed()

    def observe(self, moving: MigrationReport | None) -> VmObservation:
        """The VM as reports show it."""
        record = self.record
        pid = self.parts.machine.qemu_pid if self.parts is not None else 0
        state = (
            {
                VmPhase.CREATING: VmState.CREATING,
                VmPhase.RUNNING: VmState.RUNNING,
                VmPhase.INCOMING: VmState.MIGRATING,
                VmPhase.OUTGOING: VmState.MIGRATING,
                VmPhase.DEPARTED: VmState.MIGRATING,
            }.get(record.phase)
            or record.end_state
            or VmState.LOST
        )
        stands_because = self.paused_because or (self.disk.reason if self.disk is not None else "")
        if state is VmState.RUNNING and stands_because:
            state = VmState.PAUSED
        return VmObservation(
            record.id,
            state,
            record.held_term,
            record.spec,
            record.reason or (stands_because if state is VmState.PAUSED else self.waits_because),
            record.exit_code,
            self.progress,
            pid,
            _slim(moving) or record.last_move,
            self._held_bytes(),
            record.fills_from,
            self.waits_because,
        )

    def _held_bytes(self) -> int:
        """What exists of memory and disk, so roughly that reports do not differ by every page."""
        if self.parts is None or self.record.phase is not VmPhase.RUNNING:
            return 0
        held = self.parts.memory.resident_bytes()
        with contextlib.suppress(OSError):
            held += self.folder.overlay.stat().st_blocks * STAT_BLOCK_BYTES
        return round_up(held, HELD_STEP_BYTES)

    def keep_memory(self, group: asyncio.TaskGroup, parts: VmParts) -> None:
        """Replace the VM's memory process from now on when it ends: QEMU may need it before it answers that the guest runs."""
        if self._keeping is None:
            self._keeping = group.create_task(self._keep_memory(parts))

    async def _keep_memory(self, parts: VmParts) -> None:
        events = MemoryEvents(self._memory_ended, self._memory_replaced, self._memory_lost)
        await keep_memory(self.host, self.folder, self.spec, parts, events)

    async def _memory_ended(self, memory: MemoryProcess) -> None:
        if self._ended_memory is None:
            self._ended_memory = memory  # its end is known a moment later: when it was reaped
        else:
            await memory.close()

    async def move_begins(self) -> None:
        """What ended before has nothing to do with how the move will end."""
        ended, self._ended_memory = self._ended_memory, None
        if ended is not None:
            await ended.close()

    def what_ended(self) -> str:
        """Which of the VM's processes here have ended by themselves, and how: what other parts make of that is no reason. "" if
        none has, since the VM's move began."""
        machine = self.machine_end or (self.parts.machine.how_it_ended() if self.parts is not None else "")
        memories = (self._ended_memory, self.parts.memory if self.parts is not None else None)
        memory = next((how for memory in memories if memory is not None and (how := memory.how_it_ended())), "")
        return ended_words(self.host.config.name, self.record.request.name, memory, machine) or self.ended_in_start

    async def _memory_replaced(self, memory: MemoryProcess) -> None:
        if self.memory_replaced is not None:
            try:
                await self.memory_replaced(memory)
            except ArchitectError as error:
                _log.warning("vm %s: %s", self.record.request.name, error)

    def watch(self, group: asyncio.TaskGroup, parts: VmParts, *, fresh: bool) -> None:
        """Begin to watch the machine and its guest."""
        assert self._watching is None
        self.parts = parts
        self.guest = GuestSession(self.spec, parts.machine.channel_path, self.log, fresh=fresh)
        config, machine, clock = self.host.config, parts.machine, self.host.clock
        self.disk = DiskWatch(
            config.name, machine, clock, lambda: self.record.peer, self._remote_blocks, self._may_resume, self.host.changed
        )
        self._watching = group.create_task(self._watch(parts, self.guest, self.disk))
        self.keep_memory(group, parts)

    async def _remote_blocks(self) -> RemoteState:
        return RemoteState.NONE if self.parts is None else await remote_state(self.parts.machine)

    def _may_resume(self) -> bool:
        return self.record.phase is VmPhase.RUNNING and not self.paused_because

    async def _watch(self, parts: VmParts, guest: GuestSession, disk: DiskWatch) -> None:
        """Until the VM is over, by its workload's exit or QEMU's end. A hostile guest ends the watch, not the agent."""
        try:
            async with asyncio.TaskGroup() as group:
                beside = [group.create_task(self._watch_guest(guest)), group.create_task(disk.run())]
                with contextlib.suppress(ArchitectError):
                    async with contextlib.aclosing(parts.machine.events()) as events:
                        async for event in events:
                            if isinstance(event, DiskFailed):
                                disk.failed(event)
                            if isinstance(event, BlockJobEnded) and event.job == MIRROR_JOB:
                                self.mirror_error = event.error
                            if isinstance(event, MachineEnded):
                                by_guest = f"ended, after its guest had ({event.shutdown})" if event.shutdown else ""
                                self.machine_end = by_guest or parts.machine.how_it_ended()
                                await self.close_books()
                                break
                for task in beside:
                    task.cancel()
        except* ArchitectError as errors:
            for error in errors.exceptions:
                _log.error("vm %s: %s", self.record.request.name, error)

    async def _watch_guest(self, guest: GuestSession) -> None:
        """Until the workload ends. A guest that breaks the channel's rules is heard no more, but still watched over."""
        try:
            async with guest.connected():
                exit_code = await guest.channel.wait_exit()
                self.note_fact(exit_code=exit_code)
                await guest.power_off()
                await asyncio.sleep(EXIT_GRACE_S)
                if self.parts is not None and self.record.phase is VmPhase.RUNNING:
                    await self.parts.machine.kill()
        except ArchitectError as error:
            _log.error("vm %s: %s", self.record.request.name, error)

    async def _memory_lost(self, reason: str) -> None:
        if self.record.phase is VmPhase.RUNNING:
            await self.finish(VmState.LOST, f"{self.what_ended()}, and {reason}; no checkpoint exists")

    async def close_books(self) -> None:
        """QEMU is gone: say what became of the VM. While it moves, the end of the move says that, and then asks here again."""
        record = self.record
        if record.phase is not VmPhase.RUNNING and (record.phase is not VmPhase.CREATING or record.exit_code is None):
            return
        if record.exit_code is not None:
            await self.finish(VmState.STOPPED if record.stop_asked else VmState.EXITED, "")
        elif record.stop_asked:
            await self.finish(VmState.STOPPED, "")
        else:
            await self.finish(VmState.LOST, f"{self.what_ended()}; no checkpoint exists")

    async def finish(self, state: VmState, reason: str) -> None:
        """The VM is over: note it, let go of all it had but record and output. Idempotent."""
        if self.record.phase is VmPhase.OVER:
            return
        self.note_fact(phase=VmPhase.OVER, end_state=state, reason=reason)
        await self.give_up_parts()
        self.log.end()
        self.ended.set()
        self.host.changed()

    async def give_up_parts(self) -> None:
        """End what runs of the VM here and give its room back; record and output stay. Idempotent."""
        await destroy_parts(self.host, self.folder, self.record.request.vni, self.parts, keep_log=True)
        self.parts = None
        self.host.release(self.record.id)

    async def unwatch(self) -> None:
        """Stop watching: the VM leaves, or is destroyed by somebody who knows why. Idempotent."""
        tasks = [task for task in (self._watching, self._keeping) if task is not None]
        self._watching = self._keeping = None
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self.guest = self.disk = None

    async def destroy(self) -> None:
        """Delete all that this host has of the VM. Idempotent."""
        await self.unwatch()
        await destroy_parts(self.host, self.folder, self.record.request.vni, self.parts, keep_log=False)
        self.parts = None
        self.host.release(self.record.id)
        self.log.close()
        self.ended.set()
        self.host.changed()

    def live_guest(self) -> GuestSession:
        """The guest of a VM that runs here.

        Raises:
            ConflictError: it does not.
        """
        if self.guest is None or self.record.phase is VmPhase.OVER:
            state = self.record.end_state or self.record.phase
            raise ConflictError(f"vm {self.record.request.name}", f"is {state}", "see `architect ps`")
        return self.guest


def _slim(report: MigrationReport | None) -> MigrationReport | None:
    """A move under way without its details: who asked for the move is told them, and a host's report is sent often."""
    if report is None or report.state.is_terminal:
        return report
    return msgspec.structs.replace(report, phases=(), decisions=(), spans=())
