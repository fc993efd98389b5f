"""A fleet in one process, on virtual time, from one value: hosts, VMs, edge, store, the real control plane, and what befalls them.

`simulate_fleet(scenario)` plays all incidents, waits until everything has come to rest, and returns what the judge found. The
agents run the real handover services, the control plane is the real one (`control.plane`), as is the edge's server; machines,
memory, packets, the network and the store are simulated. `docs/operations/simulation.md` says what is not.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from architect.control.records import MigrationRecord
from architect.migration import HandoverLimits
from architect.model.handover_state import HandoverState
from architect.model.ids import HostName, VmId, Vni
from architect.model.image import BaseDiskRef, ProcessConfig
from architect.model.ownership import OwnershipRecord, RecordKind
from architect.model.vm_spec import MachineSpec, VmRequest, VmSpec
from architect.testing.fleet_deadlines import judge_deadline
from architect.testing.fleet_incidents import IncidentPlayer
from architect.testing.fleet_judge import busy_with, judge_end
from architect.testing.fleet_scenario import Fleet
from architect.testing.sim_control import SimControl
from architect.testing.sim_edge import EdgeEntry, SimEdge
from architect.testing.sim_host import SimHost
from architect.testing.sim_machine import SimVm
from architect.testing.sim_network import SimNetwork
from architect.testing.sim_result import Result
from architect.testing.sim_store import SimOwnership, SimService
from architect.testing.sim_world import World
from architect.testing.virtual_clock import DeadlockError, VirtualLoop, run_virtual
from architect.wire.agent_messages import HostFacts

LIMITS = HandoverLimits(notice_margin_s=0.5, pause_tolerable_s=0.1, part_bytes=100_000, status_hold_s=40.0)
BASE_BYTES = 300_000
REST_S_MAX = 240.0
AT_REST_S = 8.0
LOOK_S = 2.0
OnGone = Callable[["FleetSimulation", SimHost, list[VmId], float | None], None]
"""Called when a host goes: the fleet, the host, the VMs that still ran on it, the notice it had given (None: none)."""
Sabotage = Callable[["FleetSimulation"], None]


def simulate_fleet(scenario: Fleet, sabotage: Sabotage | None = None, on_gone: OnGone | None = None) -> Result:
    """Run a fleet. `sabotage` breaks it on purpose before it starts; `on_gone` may blame a deadline that was missed."""

    async def main(loop: VirtualLoop) -> Result:
        return await FleetSimulation(loop, scenario, sabotage, on_gone).run()

    logger, judge = logging.getLogger("architect"), _DefectHandler()
    level, propagates = logger.level, logger.propagate
    logger.setLevel(logging.ERROR)
    logger.propagate = False
    logger.addHandler(judge)
    try:
        return run_virtual(main)
    finally:
        logger.removeHandler(judge)
        logger.setLevel(level)
        logger.propagate = propagates


class _DefectHandler(logging.Handler):
    """An error with a traceback is a defect that something has survived: the running fleet's judge is told."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info is not None and FleetSimulation.running is not None:
            FleetSimulation.running.world.judge.blame(f"a defect: {record.getMessage()}: {record.exc_info[1]!r}")


class _OverError(Exception):
    """The simulation has ended: cancels what still runs."""


class FleetSimulation:
    """One run."""

    running: FleetSimulation | None = None

    def __init__(self, loop: VirtualLoop, scenario: Fleet, sabotage: Sabotage | None, on_gone: OnGone | None) -> None:
        self.loop = loop
        self.scenario = scenario
        self._sabotage = sabotage
        self._on_gone = on_gone

    async def run(self) -> Result:
        """Everything, from the start of the hosts to the verdict."""
        FleetSimulation.running = self
        try:
            async with asyncio.TaskGroup() as group:
                self.build(group)
                self.start()
                await self.play()
                raise _OverError
        except* _OverError:
            pass
        except* DeadlockError as errors:
            self.world.judge.blame(f"deadlock: {errors.exceptions[0]}")
        finally:
            FleetSimulation.running = None
        moves = list(self.control.database.read_all(MigrationRecord))
        return self.world.result(
            self.scenario,
            reports=[move.report for move in moves if move.report is not None],
            facts={
                "vms": len(self.vms),
                "lost": sum(not vm.running() for vm in self.vms),
                "moves": len(moves),
                "moves_done": sum(move.state is HandoverState.DONE for move in moves),
            },
        )

    def build(self, group: asyncio.TaskGroup) -> None:
        """Hosts, network, store, edge, control plane, VMs: nothing runs yet."""
        scenario = self.scenario
        self.world = World(self.loop, scenario.seed, group)
        self.network = SimNetwork(self.world, scenario.link_bytes_per_s)
        self.store = SimService(self.world, "store", self.network)
        self.ownership = SimOwnership(self.store)
        facts = [_facts(name, index, scenario) for index, name in enumerate(scenario.hosts)]
        self.edge = SimEdge(SimService(self.world, "edge", self.network), {one.address: one.name for one in facts})
        self.control = SimControl(self.world, self.network, self.edge)
        dial = self.control.dial_from
        self.hosts: dict[str, SimHost] = {
            one.name: SimHost(self.world, one, self.network, self.ownership, self.edge, LIMITS, dial) for one in facts
        }
        for host in self.hosts.values():
            host.peers = dict(self.hosts)
        self.vms = [SimVm(self.world, _spec(index, scenario), vm.guest) for index, vm in enumerate(scenario.vms)]
        self.player = IncidentPlayer(self)

    def start(self) -> None:
        """The VMs run, agents and control plane start."""
        for vm, drawn in zip(self.vms, self.scenario.vms, strict=True):
            host = self.hosts[drawn.host]
            self.ownership.create(OwnershipRecord(vm.id, 1, RecordKind.RUN, HostName(host.name), "creator"))
            host.bases[vm.spec.base.digest] = BASE_BYTES
            host.create(vm)
            self.edge.define(vm)
            self.edge.steer(vm, EdgeEntry(1, host.facts.address, ""), host.name)
        if self._sabotage is not None:
            self._sabotage(self)
        for host in self.hosts.values():
            host.start_agent()
        self.control.start()

    async def play(self) -> None:
        """The incidents, rest, and the judgement."""
        await self.player.play()
        end_s = self.loop.now_s + REST_S_MAX
        resting_since_s = self.loop.now_s
        while self.loop.now_s - resting_since_s < AT_REST_S:
            await asyncio.sleep(LOOK_S)
            if not (busy := busy_with(self)):
                continue
            resting_since_s = self.loop.now_s
            if self.loop.now_s > end_s:
                self.world.judge.blame(f"not at rest {REST_S_MAX:.0f} s after the last incident: {busy}")
                break
        await judge_end(self)

    def lose(self, host: SimHost, why: str, notice_s: float | None) -> None:
        """The host goes."""
        left = [vm.id for vm in self.vms if any(copy.host is host for copy in vm.running())]
        if not host.is_gone:
            judge_deadline(self, host, left, notice_s)
            if self._on_gone is not None:
                self._on_gone(self, host, left, notice_s)
        host.vanish(why)


def _facts(name: str, index: int, scenario: Fleet) -> HostFacts:
    return HostFacts(
        name=HostName(name), provider="sim", region="sim", address=f"10.9.{index // 250}.{index % 250 + 1}", migration_port=1,
        memory_bytes=scenario.host_memory_bytes, cpus=2, accelerator="tcg", qemu_version="7.2.22", tsc_khz=2_000_000,
        kernel_release="6.18", kernel_sha256="k", initramfs_sha256="i",
    )  # fmt: skip


def _spec(index: int, scenario: Fleet) -> VmSpec:
    guest = scenario.vms[index].guest
    memory_bytes = guest.cells * guest.cell_bytes
    address = f"10.88.{(index + 10) // 250}.{(index + 10) % 250}"
    request = VmRequest(VmId(f"vm-{index:012x}"), f"vm{index}", Vni(index + 1), "oci:sim", address, memory_bytes=memory_bytes)
    machine = MachineSpec(1, memory_bytes, 1320, "k", "i")
    mac = f"02:00:01:00:{index // 256:02x}:{index % 256:02x}"
    return VmSpec(request, machine, BaseDiskRef("d" * 64, BASE_BYTES), ProcessConfig(("sim",)), mac)
