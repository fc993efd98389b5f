"""Judges deadlines of a simulated fleet: what is still on a host when that goes, though it could have left in time.

"Could have left" is judged with reserve: nothing was wrong in the fleet from the notice to the deadline, the other hosts had twice
the room that was needed, and the notice was long enough for all emptying hosts' VMs to cross one link twice, with `MOVE_S` for each
pair of moves. What stays then was forgotten, refused or begun too late. The finer oracle, of one move on a link and a guest that
change, is `tests/migration/deadline_model.py`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from architect.model.ids import VmId
from architect.testing.fleet_scenario import Incident, IncidentKind
from architect.testing.sim_host import SimHost
from architect.testing.sim_machine import SimVm
from architect.testing.virtual_clock import START_S

if TYPE_CHECKING:
    from architect.testing.fleet import FleetSimulation

MOVE_S = 2.0
RESERVE_S = 4.0
AFTERMATH_S = 45.0
_HARMLESS = (IncidentKind.MOVE, IncidentKind.DRAIN, IncidentKind.PREEMPT)


def judge_deadline(fleet: FleetSimulation, host: SimHost, left: list[VmId], notice_s: float | None) -> None:
    """The host goes now; `left` still ran on it, `notice_s` (None: no notice) after it was told."""
    if notice_s is None or not left or _is_excused(fleet, fleet.loop.now_s - START_S, notice_s):
        return
    leaving = [vm for vm in fleet.vms if _starts_on_emptying_host(fleet, vm)]
    if not _has_room(fleet, leaving) or _need_s(fleet, leaving) > notice_s:
        return
    for vm in left:
        fleet.world.judge.blame(f"{vm} missed the deadline of {host.name}, which it could have met in {notice_s:g} s")


def _is_excused(fleet: FleetSimulation, now_s: float, notice_s: float) -> bool:
    """Whether anything was wrong, or had just been, while the host emptied."""

    def strikes(incident: Incident) -> bool:
        over_s = incident.at_s + incident.duration_s + AFTERMATH_S
        return incident.kind not in _HARMLESS and incident.at_s <= now_s and over_s >= now_s - notice_s

    return any(strikes(incident) for incident in fleet.scenario.incidents)


def _emptying(fleet: FleetSimulation) -> set[str]:
    kinds = (IncidentKind.DRAIN, IncidentKind.PREEMPT)
    return {incident.place for incident in fleet.scenario.incidents if incident.kind in kinds}


def _starts_on_emptying_host(fleet: FleetSimulation, vm: SimVm) -> bool:
    """Users' moves may bring a VM there, too: any that has one counts."""
    moved = {fleet.vms[incident.vm].id for incident in fleet.scenario.incidents if incident.kind is IncidentKind.MOVE}
    start = next(drawn.host for one, drawn in zip(fleet.vms, fleet.scenario.vms, strict=True) if one is vm)
    return vm.id in moved or start in _emptying(fleet)


def _has_room(fleet: FleetSimulation, leaving: list[SimVm]) -> bool:
    emptying = _emptying(fleet)
    staying = [name for name in fleet.scenario.hosts if name not in emptying]
    taken = sum(
        vm.spec.machine.memory_bytes for vm, drawn in zip(fleet.vms, fleet.scenario.vms, strict=True) if drawn.host in staying
    )
    free = fleet.scenario.host_memory_bytes * len(staying) - taken
    return free >= 2 * sum(vm.spec.machine.memory_bytes for vm in leaving)


def _need_s(fleet: FleetSimulation, leaving: list[SimVm]) -> float:
    sent_bytes = sum(vm.spec.machine.memory_bytes + len(vm.disk) * vm.cell_bytes for vm in leaving)
    return 2 * sent_bytes / fleet.scenario.link_bytes_per_s + MOVE_S * math.ceil(len(leaving) / 2) + RESERVE_S
