"""The agent of a simulated host, built of the real handover services over the ports of `sim_ports`.

What it does around them follows `agent.moves` and `agent.recovery` line by line: records written before the effect, what is found
at a start taken up as they do, and in a fleet the real link to the control plane.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from architect.agent.vm_record import VmPhase
from architect.errors import ArchitectError
from architect.migration import Handover, HandoverSource, HandoverTarget
from architect.migration.found_vm import FoundVerdict, abort_record, resolve_found_paused, resolve_found_running
from architect.migration.ports import decided_record
from architect.model.ids import HostName, VmId
from architect.model.vm_state import VmState
from architect.testing.sim_agent_moves import SimAgentMoves
from architect.testing.sim_agent_service import SimAgentService
from architect.testing.sim_edge import SimEdgePort
from architect.testing.sim_machine import QemuStatus
from architect.testing.sim_network import SimEnd, channel_of
from architect.testing.sim_ports import SimSourceFlows
from architect.testing.sim_store import SimOwnershipPort
from architect.testing.sim_world import current_process
from architect.testing.virtual_clock import SeededEntropy

if TYPE_CHECKING:
    from architect.testing.sim_host import SimHost

RETRY_S = 0.5
RETRY_S_MAX = 4.0
MACHINE_END_SEEN_S = 0.01


class SimAgent:
    """The agent of one host, from one start to its end."""

    def __init__(self, host: SimHost, start: int) -> None:
        self.host = host
        self.entropy = SeededEntropy((host.world.seed, host.name, start))
        self.moves = SimAgentMoves(self)
        self.source = HandoverSource(self.moves, host.clock, self.entropy, host.limits)
        self.target = HandoverTarget(host.facts, self.moves, host.clock, self.entropy, host.limits)
        self.service = SimAgentService(self)
        self.is_listening = False
        self.taken_up: dict[VmId, asyncio.Event] = {}
        self.waits: dict[VmId, str] = {}
        self._ends: list[SimEnd] = []
        self._accepted: asyncio.Queue[tuple[SimEnd, HostName]] = asyncio.Queue()
        self._group: asyncio.TaskGroup | None = None

    @property
    def name(self) -> HostName:
        """The host's name."""
        return HostName(self.host.name)

    async def run(self) -> None:
        """The process."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            group.create_task(self.source.run())
            group.create_task(self.target.run())
            await asyncio.sleep(0)
            self._recover(group)
            self.is_listening = True
            if self.host.dial_control is not None:
                group.create_task(self.service.keep_in_touch())
            while True:
                end, peer = await self._accepted.get()
                group.create_task(self._serve(end, peer))

    def accept(self, end: SimEnd, peer: HostName) -> None:
        """A connection has come."""
        self._ends.append(end)
        self._accepted.put_nowait((end, peer))

    def drop_connections(self) -> None:
        """The kernel closes a dead process's connections."""
        for end in self._ends:
            end.close()

    def track(self, end: SimEnd) -> None:
        """A connection that this agent has opened."""
        self._ends = [old for old in self._ends if not old.closed]
        self._ends.append(end)

    def note(self, vm: VmId, **changes: object) -> None:
        """Write a VM's record with these fields changed, and tell."""
        current_process().check_alive()
        self.host.records[vm] = msgspec.structs.replace(self.host.records[vm], **changes)
        self.service.changed()

    def machine_ended(self, vm: VmId) -> None:
        """The VM's QEMU has ended by itself: this process will see it."""
        self.host.process.run(lambda: self._see_end(vm))

    async def _see_end(self, vm: VmId) -> None:
        await asyncio.sleep(MACHINE_END_SEEN_S)
        self.close_books(vm)

    def close_books(self, vm: VmId) -> None:
        """QEMU is gone: say what became of the VM. While it moves, the end of the move says that, and then asks here again."""
        record, qemu = self.host.records.get(vm), self.host.qemus.get(vm)
        if record is not None and record.phase is VmPhase.RUNNING and (qemu is None or qemu.status is QemuStatus.DEAD):
            self.finish(vm, f"QEMU ended on host {self.name}; no checkpoint exists")

    def finish(self, vm: VmId, reason: str) -> None:
        """The VM is lost: note it, let go of all it had but record and output. Idempotent."""
        if self.host.records[vm].phase is not VmPhase.OVER:
            self.note(vm, phase=VmPhase.OVER, end_state=VmState.LOST, reason=reason)
            self.host.give_up_parts(vm)

    def drop(self, vm: VmId) -> None:
        """The VM is not here any more. Idempotent."""
        current_process().check_alive()
        self.host.records.pop(vm, None)
        self.service.changed()

    async def _serve(self, end: SimEnd, peer: HostName) -> None:
        connection = self.target.connection(peer)
        try:
            await channel_of(end, connection.handle, f"host {peer}").run()
        except ArchitectError as error:
            self.host.world.say(self.host.process.name, f"connection of {peer}: {error}")
        finally:
            connection.ended()

    def _recover(self, group: asyncio.TaskGroup) -> None:
        """Know every VM that has a record here, and take each up in a task of its own (`agent.recovery`)."""
        host = self.host
        for vm, record in list(host.records.items()):
            if record.phase is VmPhase.CREATING:
                host.destroy(vm)
            elif record.phase is not VmPhase.OVER:
                self.taken_up[vm] = asyncio.Event()
                group.create_task(self._take_up(vm))
        for vm in [vm for vm in host.flows.modes if vm not in host.records]:
            host.flows.forget(vm)

    async def _take_up(self, vm: VmId) -> None:
        pause_s = RETRY_S
        while True:
            try:
                await self._take_up_once(vm)
                break
            except ArchitectError as error:
                self.host.world.say(self.host.process.name, f"takes up {vm}: {error}", vm)
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, RETRY_S_MAX)
        self.taken_up[vm].set()

    async def _take_up_once(self, vm: VmId) -> None:
        host, record = self.host, self.host.records[vm]
        plan = host.plans.get(vm) if record.phase is VmPhase.OUTGOING else None
        prepare = host.arriving.get(vm)
        qemu = host.qemus.get(vm)
        runs = qemu is not None and qemu.status is not QemuStatus.DEAD
        if record.phase is VmPhase.INCOMING and prepare is None:
            host.destroy(vm)
        elif plan is not None:
            is_running = qemu is not None and qemu.status is QemuStatus.RUNNING
            self.source.take_up(Handover(plan, self.moves.source_ports(plan), self.moves.dial(plan)), is_running=is_running)
        elif prepare is not None and (runs or record.phase is VmPhase.INCOMING):
            await self.target.recover(prepare, self.moves.target_ports(vm))
        elif not runs:
            if record.phase is VmPhase.OUTGOING:
                self.note(vm, phase=VmPhase.RUNNING)
            self.close_books(vm)
        else:
            await self._take_up_running(vm)

    async def _take_up_running(self, vm: VmId) -> None:
        host, record, qemu = self.host, self.host.records[vm], self.host.qemus[vm]
        log = SimOwnershipPort(host.ownership, host.name)
        if qemu.status is QemuStatus.RUNNING:
            latest = await log.latest(vm)
            verdict = resolve_found_running(self.name, latest)
            term = latest.term if latest is not None else record.term
        else:
            at_stake = abort_record(vm, record.term + 1, self.name, self.entropy.random_bytes(8).hex(), record.migration)
            decided = await decided_record(log, at_stake)
            verdict, term = resolve_found_paused(self.name, decided, is_serving=False), decided.term
        if verdict is not FoundVerdict.RUN:
            host.destroy(vm)
            self.service.changed()
            return
        self.note(vm, term=term, phase=VmPhase.RUNNING)
        await host.world.call("machine.resume", self.moves.resuming(vm), place=host.name)
        edge = SimEdgePort(host.edge, vm, host.name)
        self.source.reclaim(vm, term, host.facts.address, SimSourceFlows(host, vm), edge)
