"""A simulated host: what survives its agent (QEMUs, memory processes, packets' state, files), and the agent, built of real parts.

The agent runs the real `HandoverSource` and `HandoverTarget` over the ports of `sim_ports`, and when it starts it takes up what it
finds, as the real one does.
"""

from __future__ import annotations

import asyncio
from typing import Any

from architect.errors import ArchitectError, ConflictError, NotFoundError
from architect.migration import Handover, HandoverLimits, HandoverPlan, HandoverSource, HandoverTarget, SourcePorts, TargetPorts
from architect.model.ids import HostName, MigrationId, VmId
from architect.model.vm_spec import VmSpec
from architect.testing.sim_events import EventKind
from architect.testing.sim_flow import SimFlows
from architect.testing.sim_machine import QemuStatus, SimQemu, SimVm
from architect.testing.sim_memory import SimMemory
from architect.testing.sim_network import SimDial, SimNetwork, channel_of
from architect.testing.sim_ports import SimBases, SimLog, SimSourceFlows, SimSourceMachine, SimSourceMemory
from architect.testing.sim_ports_target import SimTargetFlows, SimTargetMachine, SimTargetMemory
from architect.testing.sim_process import SimProcess
from architect.testing.sim_store import SimEdge, SimEdgePort, SimOwnership, SimOwnershipPort
from architect.testing.sim_world import World, current_process
from architect.testing.virtual_clock import SeededEntropy, VirtualClock
from architect.wire.agent_messages import HostFacts, MigrateVm, MigrationReport
from architect.wire.migration_messages import Prepare

RESTART_S = (0.2, 3.0)


class SimHost:
    """One host. `peers` are all hosts by name."""

    def __init__(
        self, world: World, facts: HostFacts, network: SimNetwork, ownership: SimOwnership, edge: SimEdge, limits: HandoverLimits
    ) -> None:
        self.world = world
        self.facts = facts
        self.name: str = facts.name
        self.network = network
        self.ownership = ownership
        self.edge = edge
        self.limits = limits
        self.clock = VirtualClock(world.loop, world.random.uniform(-0.5, 0.5))
        self.peers: dict[str, SimHost] = {}
        self.vms: dict[VmId, SimVm] = {}
        self.qemus: dict[VmId, SimQemu] = {}
        self.memories: dict[VmId, SimMemory] = {}
        self.flows = SimFlows(self)
        self.logs: dict[VmId, bytes] = {}
        self.bases: dict[str, int] = {}
        self.plans: dict[VmId, HandoverPlan] = {}
        self.arriving: dict[VmId, Prepare] = {}
        self.lost: dict[VmId, str] = {}
        self.process = SimProcess(world, f"agent {self.name}", self.name)
        self.agent: SimAgent | None = None
        self.starts = 0

    def neighbour(self, address: str) -> SimHost:
        """The host at an underlay address."""
        return self.peers[address]

    def create(self, vm: SimVm) -> None:
        """The VM begins its life here."""
        self.vms[vm.id] = vm
        memory = self.memories[vm.id] = SimMemory(vm, self, is_full=True)
        qemu = self.qemus[vm.id] = SimQemu(vm, self, memory, QemuStatus.PAUSED)
        self.flows.set_local(vm.id)
        qemu.resume()

    def destroy(self, vm: VmId) -> None:
        """Delete all of a VM."""
        if (qemu := self.qemus.pop(vm, None)) is not None:
            qemu.die(EventKind.DESTROY)
            qemu.exports_snapshot = False
        if (memory := self.memories.pop(vm, None)) is not None:
            memory.die()
        self.flows.forget(vm)
        self.logs.pop(vm, None)

    def start_agent(self) -> None:
        """Start the agent's process; its supervisor starts it again after every death."""
        self.starts += 1
        self.process = SimProcess(self.world, f"agent {self.name}", self.name, lambda: self.kill_agent("at a scheduling point"))
        agent = self.agent = SimAgent(self, self.starts)
        self.world.say(self.process.name, "starts")
        self.world.note(EventKind.RESTART, self.process.name, host=self.name)
        self.process.start(agent.run)

    def kill_agent(self, why: str) -> None:
        """`kill -9`, then the supervisor's restart."""
        if not self.process.is_alive:
            return
        self.process.kill(why)
        if self.agent is not None:
            self.agent.drop_connections()
            self.agent = None
        self.world.loop.call_later(self.world.random.uniform(*RESTART_S), self.start_agent)

    def accept(self, end: Any, source: str) -> bool:
        """A connection from another host's agent."""
        if self.agent is None or not self.process.is_alive or not self.agent.is_listening:
            return False
        self.agent.accept(end, HostName(source))
        return True


class SimAgent:
    """The agent of one host, from one start to its end."""

    def __init__(self, host: SimHost, start: int) -> None:
        self.host = host
        entropy = SeededEntropy((host.world.seed, host.name, start))
        self.source = HandoverSource(self, host.clock, entropy, host.limits)
        self.target = HandoverTarget(host.facts, self, host.clock, entropy, host.limits)
        self.is_listening = False
        self._ends: list[Any] = []
        self._accepted: asyncio.Queue[tuple[Any, HostName]] = asyncio.Queue()

    async def run(self) -> None:
        """The process."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.source.run())
            group.create_task(self.target.run())
            await asyncio.sleep(0)
            self._recover(group)
            self.is_listening = True
            while True:
                end, peer = await self._accepted.get()
                group.create_task(self._serve(end, peer))

    def accept(self, end: Any, peer: HostName) -> None:
        """A connection has come."""
        self._ends.append(end)
        self._accepted.put_nowait((end, peer))

    def drop_connections(self) -> None:
        """The kernel closes a dead process's connections."""
        for end in self._ends:
            end.close()

    def track(self, end: Any) -> None:
        """A connection that this agent has opened."""
        self._ends.append(end)

    async def _serve(self, end: Any, peer: HostName) -> None:
        connection = self.target.connection(peer)
        try:
            await channel_of(end, connection.handle, f"host {peer}").run()
        except ArchitectError as error:
            self.host.world.say(self.host.process.name, f"connection of {peer}: {error}")
        finally:
            connection.ended()

    def _recover(self, group: asyncio.TaskGroup) -> None:
        host = self.host
        for vm, request in list(host.arriving.items()):
            if vm in host.qemus and host.qemus[vm].counter >= 0:
                group.create_task(self.target.recover(request, self._target_ports(request.spec)))
            else:
                # Nothing was loaded, so nothing was claimed.
                host.destroy(vm)
                del host.arriving[vm]
        for vm, plan in list(host.plans.items()):
            qemu = host.qemus.get(vm)
            is_running = qemu is not None and qemu.status is QemuStatus.RUNNING
            group.create_task(self.source.recover(self._handover(plan), is_running=is_running))
        for vm, qemu in host.qemus.items():
            newest = host.ownership.newest(vm)
            if vm not in host.arriving and vm not in host.plans and qemu.status is QemuStatus.RUNNING and newest is not None:
                edge = SimEdgePort(host.edge, vm, host.name)
                self.source.reclaim(vm, newest.term, host.facts.address, SimSourceFlows(host, vm), edge)

    def _handover(self, plan: HandoverPlan) -> Handover:
        host, vm = self.host, plan.vm
        dial = SimDial(host.network, host.name, plan.target.name, host.peers[plan.target.name].accept, self.track)
        edge = SimEdgePort(host.edge, vm, host.name)
        ports = SourcePorts(
            machine=SimSourceMachine(host, vm),
            memory=SimSourceMemory(host, vm),
            flows=SimSourceFlows(host, vm),
            edge=edge,
            log=SimLog(host, vm),
            bases=SimBases(host),
            ownership=SimOwnershipPort(host.ownership, host.name),
        )
        return Handover(plan, ports, dial)

    def _target_ports(self, spec: VmSpec) -> TargetPorts:
        host, vm = self.host, spec.id
        return TargetPorts(
            machine=SimTargetMachine(host, vm),
            memory=SimTargetMemory(host, vm),
            flows=SimTargetFlows(host, vm),
            edge=SimEdgePort(host.edge, vm, host.name),
            log=SimLog(host, vm),
            bases=SimBases(host),
            ownership=SimOwnershipPort(host.ownership, host.name),
        )

    async def open_handover(self, request: MigrateVm) -> Handover:
        """As the port says."""
        host, vm = self.host, request.vm
        if vm not in host.qemus or vm in host.arriving or host.qemus[vm].status is QemuStatus.DEAD:
            raise NotFoundError(f"vm {vm}", f"is not at host {host.name}", "look where it is")
        if vm in host.plans:
            raise ConflictError(f"vm {vm}", "is being moved", "wait")
        await self.target.let_go(vm)
        newest = await SimOwnershipPort(host.ownership, host.name).latest(vm)
        assert newest is not None and newest.host == host.name, f"{newest} at {host.name}"
        now_s = host.clock.monotonic_s()
        plan = HandoverPlan(
            migration=request.migration,
            spec=host.vms[vm].spec,
            term=newest.term,
            source=host.facts,
            target=request.target,
            mode=request.mode,
            started_at_s=now_s,
            deadline_at_s=None if request.deadline_s is None else now_s + request.deadline_s,
            verify=request.verify,
            limits=host.limits,
        )
        return self._handover(plan)

    def keep(self, plan: HandoverPlan) -> None:
        """As the port says."""
        current_process().check_alive()
        self.host.plans[plan.vm] = plan

    def forget(self, plan: HandoverPlan) -> None:
        """As the port says."""
        current_process().check_alive()
        self.host.plans.pop(plan.vm, None)

    def ended(self, report: MigrationReport, term: int, keeps: bool) -> None:
        """As the port says."""
        current_process().check_alive()
        self.host.world.say(self.host.process.name, f"handover {report.id} {report.state.value} term {term}: {report.reason}")
        if not keeps:
            self.host.vms.pop(report.vm, None)

    async def reserve(self, request: Prepare) -> TargetPorts:
        """As the port says."""
        vm = request.spec.id
        if vm in self.host.qemus or vm in self.host.arriving:
            raise ConflictError(f"vm {vm}", f"is at host {self.host.name} already", "wait")
        self.host.arriving[vm] = request
        return self._target_ports(request.spec)

    def taken_over(self, migration: MigrationId, spec: VmSpec, term: int) -> None:
        """As the port says."""
        current_process().check_alive()
        self.host.world.say(self.host.process.name, f"has taken over by term {term}")

    def filled(self, vm: VmId) -> None:
        """As the port says."""
        current_process().check_alive()
        self.host.arriving.pop(vm, None)

    def lost(self, vm: VmId, reason: str) -> None:
        """As the port says."""
        current_process().check_alive()
        self.host.lost[vm] = reason
        self.host.arriving.pop(vm, None)

    def abandoned(self, vm: VmId, source: HostName, reason: str) -> None:
        """As the port says."""
        current_process().check_alive()
        self.host.world.say(self.host.process.name, f"{vm} does not come: {reason}")
        self.host.arriving.pop(vm, None)
