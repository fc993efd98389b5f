"""Plays a fleet's incidents at their times."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, assert_never

from architect.model.notice import Notice, NoticeKind
from architect.model.times import rfc3339
from architect.testing.fleet_scenario import Incident, IncidentKind
from architect.testing.virtual_clock import START_S, WALL_START_S

if TYPE_CHECKING:
    from architect.testing.fleet import FleetSimulation

SLOWNESS = 20.0
EDGE_RESTART_S = 1.0


class IncidentPlayer:
    """Strikes, and knows when the last incident is over."""

    def __init__(self, fleet: FleetSimulation) -> None:
        self._fleet = fleet
        self.over_at_s = 0.0

    async def play(self) -> None:
        """All incidents, in order of their times."""
        loop = self._fleet.world.loop
        for incident in sorted(self._fleet.scenario.incidents, key=lambda one: one.at_s):
            await asyncio.sleep(max(START_S + incident.at_s - loop.now_s, 0))
            self._fleet.world.say("fault", describe(incident))
            self._strike(incident)
            self.over_at_s = max(self.over_at_s, loop.now_s + incident.duration_s)
        await asyncio.sleep(max(self.over_at_s - loop.now_s, 0))

    def _strike(self, incident: Incident) -> None:
        fleet, kind, duration_s = self._fleet, incident.kind, incident.duration_s
        world, place = fleet.world, incident.place
        match kind:
            case IncidentKind.MOVE:
                fleet.control.move(fleet.vms[incident.vm].id, incident.other, incident.mode)
            case IncidentKind.DRAIN:
                fleet.control.drain(place)
            case IncidentKind.PREEMPT:
                self._preempt(incident)
            case IncidentKind.VANISH:
                fleet.lose(fleet.hosts[place], "without notice", None)
            case IncidentKind.FREEZE:
                world.freeze(place, duration_s)
            case IncidentKind.CUT | IncidentKind.RESET:
                fleet.network.cut(place, incident.other, duration_s, resets=kind is IncidentKind.RESET)
            case IncidentKind.CUT_ONE_WAY:
                fleet.network.cut(place, incident.other, duration_s, is_one_way=True)
            case IncidentKind.SLOW:
                world.slowness[place] = SLOWNESS
                world.loop.call_later(duration_s, world.slowness.pop, place, None)
            case IncidentKind.CRASH_AGENT:
                fleet.hosts[place].process.crash_after(incident.points)
            case IncidentKind.CRASH_CONTROL:
                fleet.control.process.crash_after(incident.points)
            case IncidentKind.CRASH_EDGE:
                fleet.edge.crash(EDGE_RESTART_S)
            case IncidentKind.CRASH_QEMU | IncidentKind.CRASH_MEMORY:
                self._crash_machine(incident)
            case IncidentKind.STORE_DEAF | IncidentKind.STORE_DUMB | IncidentKind.STORE_LATE:
                fleet.store.trouble(kind.value.split("-")[1], place, duration_s)
            case IncidentKind.EDGE_DEAF | IncidentKind.EDGE_DUMB | IncidentKind.EDGE_LATE:
                fleet.edge.service.trouble(kind.value.split("-")[1], place, duration_s)
            case _:
                assert_never(kind)

    def _preempt(self, incident: Incident) -> None:
        fleet, host = self._fleet, self._fleet.hosts[incident.place]
        if host.notice is not None or host.is_gone:
            return
        loop = fleet.world.loop
        deadline = rfc3339(WALL_START_S + loop.now_s + incident.duration_s)
        host.notice = Notice(f"notice-{host.name}", NoticeKind.PREEMPTION, deadline)
        if host.agent is not None:
            host.agent.service.changed()
        loop.call_later(incident.duration_s, fleet.lose, host, "preempted", incident.duration_s)

    def _crash_machine(self, incident: Incident) -> None:
        """The copy that runs, or else any."""
        vm = self._fleet.vms[incident.vm].id
        hosts = [host for host in self._fleet.hosts.values() if vm in host.qemus and not host.is_gone]
        for host in sorted(hosts, key=lambda host: host.qemus[vm].status.value != "running")[:1]:
            if incident.kind is IncidentKind.CRASH_QEMU:
                host.kill_qemu(vm)
            else:
                host.kill_memory(vm)


def describe(incident: Incident) -> str:
    """An incident in words."""
    fields = [f"{name}={value}" for name, value in (("other", incident.other), ("points", incident.points)) if value]
    if incident.kind in (IncidentKind.MOVE, IncidentKind.CRASH_QEMU, IncidentKind.CRASH_MEMORY):
        fields.append(f"vm={incident.vm}")
    if incident.duration_s:
        fields.append(f"for {incident.duration_s:g} s")
    return " ".join([incident.kind.value, incident.place, *fields])
