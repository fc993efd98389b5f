"""A simulated host: what survives its agent (QEMUs, memory processes, packets' state, files), until the host itself is gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from architect.agent.vm_record import VmPhase, VmRecord
from architect.migration import HandoverLimits, HandoverPlan
from architect.model.ids import HostName, VmId
from architect.model.notice import Notice
from architect.testing.sim_agent import SimAgent
from architect.testing.sim_events import EventKind
from architect.testing.sim_flow import SimFlows
from architect.testing.sim_machine import QemuStatus, SimQemu, SimVm
from architect.testing.sim_memory import SimMemory
from architect.testing.sim_process import SimProcess
from architect.testing.virtual_clock import VirtualClock
from architect.wire.agent_messages import HostFacts
from architect.wire.migration_messages import Prepare

if TYPE_CHECKING:
    from architect.testing.sim_edge import SimEdge
    from architect.testing.sim_network import SimEnd, SimNetwork
    from architect.testing.sim_store import SimOwnership
    from architect.testing.sim_world import World

RESTART_S = (0.2, 3.0)
MEMORY_RESTART_S = 0.5


class SimHost:
    """One host. `peers` are all hosts by name; `records`, `plans` and `arriving` are its files.

    :param dial_control: connects to the control plane; None where there is none.
    """

    def __init__(
        self,
        world: World,
        facts: HostFacts,
        network: SimNetwork,
        ownership: SimOwnership,
        edge: SimEdge,
        limits: HandoverLimits,
        dial_control: Callable[[SimHost], Any] | None = None,
    ) -> None:
        self.world = world
        self.facts = facts
        self.name: str = facts.name
        self.network = network
        self.ownership = ownership
        self.edge = edge
        self.limits = limits
        self.dial_control = dial_control
        self.clock = VirtualClock(world.loop, world.random.uniform(-0.5, 0.5))
        self.peers: dict[str, SimHost] = {}
        self.qemus: dict[VmId, SimQemu] = {}
        self.memories: dict[VmId, SimMemory] = {}
        self.flows = SimFlows(self)
        self.logs: dict[VmId, bytes] = {}
        self.bases: dict[str, int] = {}
        self.records: dict[VmId, VmRecord] = {}
        self.plans: dict[VmId, HandoverPlan] = {}
        self.arriving: dict[VmId, Prepare] = {}
        self.halted: set[VmId] = set()
        self.notice: Notice | None = None
        self.move_bandwidth_bytes_s = 0
        self.is_gone = False
        self.process = SimProcess(world, f"agent {self.name}", self.name)
        self.agent: SimAgent | None = None
        self.starts = 0

    @property
    def memory_free_bytes(self) -> int:
        """What a new VM may take."""
        taken = sum(record.request.memory_bytes for record in self.records.values() if record.phase is not VmPhase.OVER)
        return self.facts.memory_bytes - taken

    def neighbour(self, address: str) -> SimHost:
        """The host at an underlay address."""
        return next(host for host in self.peers.values() if host.facts.address == address)

    def create(self, vm: SimVm, term: int = 1) -> None:
        """The VM begins its life here."""
        self.records[vm.id] = VmRecord(vm.spec.request, VmPhase.RUNNING, term, vm.spec, workload_started=True)
        memory = self.memories[vm.id] = SimMemory(vm, self, is_full=True)
        qemu = self.qemus[vm.id] = SimQemu(vm, self, memory, QemuStatus.PAUSED)
        self.flows.add(vm.id)
        self.flows.set_local(vm.id)
        qemu.resume()

    def give_up_parts(self, vm: VmId) -> None:
        """End what runs of a VM; record and output stay."""
        if (qemu := self.qemus.pop(vm, None)) is not None:
            qemu.die(EventKind.DESTROY)
            qemu.disk_is_frozen = False
        if (memory := self.memories.pop(vm, None)) is not None:
            memory.die()
        self.flows.forget(vm)

    def destroy(self, vm: VmId) -> None:
        """Delete all of a VM, its folder too."""
        self.give_up_parts(vm)
        for files in (self.logs, self.records, self.plans, self.arriving):
            files.pop(vm, None)

    def wake(self, vm: VmId) -> None:
        """What the VM's guest writes is watched from now on."""
        if (qemu := self.qemus.get(vm)) is not None:
            qemu.wake()

    def start_agent(self) -> None:
        """Start the agent's process; its supervisor starts it again after every death."""
        if self.is_gone:
            return
        self.starts += 1
        on_crash = lambda: self.kill_agent("at a scheduling point")  # noqa: E731
        self.process = SimProcess(self.world, f"agent {self.name}", self.name, on_crash)
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

    def kill_qemu(self, vm: VmId) -> None:
        """A fault ends the VM's QEMU; the agent notices when it may."""
        qemu = self.qemus.get(vm)
        if qemu is None or qemu.status is QemuStatus.DEAD:
            return
        self._excuse(vm, "QEMU was killed", may_be_needed=False)
        qemu.die()
        if self.agent is not None:
            self.agent.machine_ended(vm)

    def kill_memory(self, vm: VmId) -> None:
        """A fault ends the VM's memory process; another one goes on over the same memory, without its sessions."""
        memory = self.memories.get(vm)
        if memory is None or not memory.is_alive:
            return
        self._excuse(vm, "memory process was killed")
        memory.die()
        self.world.note(EventKind.CRASH, f"memory {self.name}", vm, host=self.name)
        self.world.loop.call_later(MEMORY_RESTART_S, self._restart_memory, vm, memory)

    def vanish(self, why: str) -> None:
        """The host is switched off: everything on it ends at once, nobody is told, and it never comes back."""
        if self.is_gone:
            return
        self.is_gone = True
        self.world.say(f"host {self.name}", f"gone ({why})")
        self.world.note(EventKind.GONE, f"host {self.name}", host=self.name)
        self.network.lose(self.name)
        self.process.kill(why)
        self.agent = None
        for vm, qemu in self.qemus.items():
            if qemu.status is not QemuStatus.DEAD:
                self._excuse(vm, why)
                qemu.die()
        for memory in self.memories.values():
            memory.vanish()

    def _excuse(self, vm: VmId, why: str, *, may_be_needed: bool = True) -> None:
        """What ends here may lose the VM only if the VM is here, or may be in an instant, or still needs what is here: a target
        that fills needs the source's memory process, and not its QEMU."""
        qemu, memory, newest = self.qemus.get(vm), self.memories.get(vm), self.ownership.newest(vm)
        owns = newest is not None and newest.host == self.name
        is_loaded = qemu is not None and qemu.status is QemuStatus.INCOMING and qemu.counter >= 0
        serves = (qemu is not None and qemu.disk_is_frozen) or (memory is not None and memory.is_serving())
        # Here a memory process that replaces a killed one does not go on with its session, as the real one does.
        lacks_pages = memory is not None and len(memory.valid) < memory.vm.page_count
        if owns or is_loaded or (may_be_needed and (serves or lacks_pages)):
            self.world.judge.excuse(vm, f"{why} at {self.name}")

    def accept(self, end: SimEnd, source: str) -> bool:
        """A connection from another host's agent."""
        if self.agent is None or not self.process.is_alive or not self.agent.is_listening:
            return False
        self.agent.accept(end, HostName(source))
        return True

    def _restart_memory(self, vm: VmId, memory: SimMemory) -> None:
        if self.memories.get(vm) is memory and not self.is_gone:
            memory.is_alive = True
