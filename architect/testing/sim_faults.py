"""Plays a scenario's faults at their numbered calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from architect.model.ids import VmId
from architect.testing.sim_events import EventKind
from architect.testing.sim_machine import QemuStatus
from architect.testing.sim_memory import SimMemory
from architect.testing.sim_process import SimProcess
from architect.testing.sim_scenario import Fault, FaultKind

if TYPE_CHECKING:
    from architect.testing.sim_host import SimHost
    from architect.testing.simulator import Simulation

SLOWNESS = 40.0


class FaultPlayer:
    """Watches the calls, and strikes."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._begun: dict[int, int] = {}
        self._left = list(simulation.scenario.faults)
        simulation.world.on_call = self._on_call

    def has_begun(self, move: int) -> bool:
        """Whether the move has been asked for already (by a control plane that died)."""
        return move in self._begun

    def begin(self, move: int) -> None:
        """Count the calls of this move from here on."""
        self._begun[move] = self._simulation.world.call_count

    def stop(self) -> None:
        """No fault strikes any more."""
        self._left.clear()

    def _on_call(self, number: int, phase: str, process: SimProcess | None, name: str) -> None:
        for fault in list(self._left):
            base = self._begun.get(fault.move)
            if base is not None and number - base == fault.call and phase == fault.phase:
                self._left.remove(fault)
                self._strike(fault)

    def _strike(self, fault: Fault) -> None:
        simulation = self._simulation
        source, target = simulation.hosts[simulation.source_name], simulation.hosts[simulation.target_name]
        host = source if fault.on_source else target
        world = simulation.world
        world.say("fault", f"{fault.kind.value} {host.name}")
        match fault.kind:
            case FaultKind.KILL_SOURCE_AGENT:
                source.kill_agent("fault")
            case FaultKind.KILL_TARGET_AGENT:
                target.kill_agent("fault")
            case FaultKind.KILL_CONTROL:
                simulation.control.kill("fault")
                world.loop.call_later(1.0, simulation.start_control)
            case FaultKind.KILL_SOURCE_QEMU:
                _kill_qemu(simulation, source)
            case FaultKind.KILL_TARGET_QEMU:
                _kill_qemu(simulation, target)
            case FaultKind.KILL_SOURCE_MEMORY:
                _kill_memory(simulation, source)
            case FaultKind.KILL_TARGET_MEMORY:
                _kill_memory(simulation, target)
            case FaultKind.CUT_NETWORK | FaultKind.RESET_NETWORK:
                resets = fault.kind is FaultKind.RESET_NETWORK
                simulation.network.cut(source.name, target.name, fault.duration_s, resets=resets)
            case FaultKind.STORE_DEAF | FaultKind.STORE_DUMB:
                simulation.store.trouble(fault.kind.value.split("-")[1], host.name, fault.duration_s)
            case FaultKind.EDGE_DEAF | FaultKind.EDGE_DUMB:
                simulation.edge_service.trouble(fault.kind.value.split("-")[1], host.name, fault.duration_s)
            case FaultKind.SLOW:
                world.slowness[host.name] = SLOWNESS
                world.loop.call_later(fault.duration_s, world.slowness.pop, host.name, None)


def _kill_qemu(simulation: Simulation, host: SimHost) -> None:
    for qemu in host.qemus.values():
        if qemu.status is not QemuStatus.DEAD:
            simulation.world.judge.excuse(f"QEMU at {host.name} was killed")
            qemu.die()


def _kill_memory(simulation: Simulation, host: SimHost) -> None:
    for vm, memory in host.memories.items():
        simulation.world.judge.excuse(f"memory process at {host.name} was killed")
        memory.die()
        simulation.world.note(EventKind.CRASH, f"memory {host.name}", vm, host=host.name)
        simulation.world.loop.call_later(0.5, _restart_memory, host, vm, memory)


def _restart_memory(host: SimHost, vm: VmId, memory: SimMemory) -> None:
    """Its supervisor starts it again over the same memfd; its sessions are gone."""
    if host.memories.get(vm) is memory:
        memory.is_alive = True
