"""Plays a scenario's faults at their numbered calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from architect.testing.sim_process import SimProcess
from architect.testing.sim_scenario import AT_POINT, Fault, FaultKind

if TYPE_CHECKING:
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
        simulation = self._simulation
        self._begun[move] = simulation.world.call_count
        for fault in [fault for fault in self._left if fault.move == move and fault.phase == AT_POINT]:
            self._left.remove(fault)
            is_source = fault.kind is FaultKind.KILL_SOURCE_AGENT
            host = simulation.hosts[simulation.source_name if is_source else simulation.target_name]
            host.process.crash_after(fault.call)

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
                source.kill_qemu(simulation.vm.id)
            case FaultKind.KILL_TARGET_QEMU:
                target.kill_qemu(simulation.vm.id)
            case FaultKind.KILL_SOURCE_MEMORY:
                source.kill_memory(simulation.vm.id)
            case FaultKind.KILL_TARGET_MEMORY:
                target.kill_memory(simulation.vm.id)
            case FaultKind.CUT_NETWORK | FaultKind.RESET_NETWORK:
                resets = fault.kind is FaultKind.RESET_NETWORK
                simulation.network.cut(source.name, target.name, fault.duration_s, resets=resets)
            case FaultKind.CUT_ONE_WAY:
                ends = (source.name, target.name) if fault.on_source else (target.name, source.name)
                simulation.network.cut(*ends, fault.duration_s, is_one_way=True)
            case FaultKind.FREEZE_SOURCE:
                world.freeze(source.name, fault.duration_s)
            case FaultKind.FREEZE_TARGET:
                world.freeze(target.name, fault.duration_s)
            case FaultKind.STORE_DEAF | FaultKind.STORE_DUMB | FaultKind.STORE_LATE:
                simulation.store.trouble(fault.kind.value.split("-")[1], host.name, fault.duration_s)
            case FaultKind.EDGE_DEAF | FaultKind.EDGE_DUMB | FaultKind.EDGE_LATE:
                simulation.edge_service.trouble(fault.kind.value.split("-")[1], host.name, fault.duration_s)
            case FaultKind.GIVE_UP:
                if source.agent is not None and source.agent.source.is_moving(simulation.vm.id):
                    source.agent.source.give_up(simulation.migration, "it is to be stopped")
            case FaultKind.SLOW:
                world.slowness[host.name] = SLOWNESS
                world.loop.call_later(fault.duration_s, world.slowness.pop, host.name, None)
