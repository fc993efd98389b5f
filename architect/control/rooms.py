"""Rooms: what placement may count on at each host, from records and reports.

A host's free memory is what it reported, less what was promised since: VMs placed there that its report does not show yet, and VMs
that are moving there and are not in its report. So two requests at the same moment never get the same room.
"""

from __future__ import annotations

from enum import StrEnum

from architect.control.fabric import Fabric
from architect.control.notices import deadline_at_s
from architect.control.records import HostRecord
from architect.model.ids import HostName, VmId
from architect.policy.placement import HostRoom


class HostState(StrEnum):
    """A host's state as users see it."""

    READY = "ready"
    DRAINING = "draining"
    LEAVING = "leaving"
    LOST = "lost"


def host_state(fabric: Fabric, record: HostRecord) -> HostState:
    """Lost before leaving before draining before ready; a host that this process has not heard of yet counts as lost to users."""
    if fabric.fleet.is_lost(record.name) or not fabric.fleet.has_reported(record.name):
        return HostState.LOST
    if record.notice is not None:
        return HostState.LEAVING
    return HostState.DRAINING if record.draining else HostState.READY


def is_gone(fabric: Fabric, host: HostName) -> bool:
    """Whether the host is taken for gone: forgotten, or silent and destroyed by its provider's word, or past its notice's
    deadline, or for `host_gone_after_s`. What is concluded from that is taken back if the host returns.

    A host that is only silent (its agent is being started again, a link is cut) still runs what it ran.
    """
    return bool(_why_gone(fabric, host))


def why_gone_for_good(fabric: Fabric, host: HostName) -> str:
    """Why the host will certainly not return; "" if it may. What is concluded from that is final: so where its provider can be
    asked, silence is no reason.
    """
    if fabric.instances is not None and host in fabric.book.hosts and host not in fabric.destroyed:
        return ""
    return _why_gone(fabric, host)


def _why_gone(fabric: Fabric, host: HostName) -> str:
    record = fabric.book.hosts.get(host)
    if record is None:
        return "it was removed from the fabric"
    if not fabric.fleet.is_lost(host):
        return ""
    if host in fabric.destroyed:
        return "its provider has it no more"
    now_s, gone_after_s = fabric.clock.wall_s(), fabric.config.host_gone_after_s
    deadline_s = deadline_at_s(record.notice, now_s)
    if deadline_s is not None and deadline_s < now_s:
        return "its notice's deadline has passed, and nothing is heard of it"
    return f"nothing was heard of it for {gone_after_s:g} s" if fabric.fleet.silent_s(host) > gone_after_s else ""


def room_at(fabric: Fabric, record: HostRecord) -> HostRoom:
    """What placement knows of one host."""
    state = host_state(fabric, record)
    closed = "" if state is HostState.READY else f"is {state.value}"
    if not closed and fabric.fleet.report(record.name) is None:
        closed = "is not connected"
    return HostRoom(record.name, free_bytes(fabric, record.name), closed)


def rooms(fabric: Fabric) -> list[HostRoom]:
    """What placement knows of all hosts."""
    return [room_at(fabric, record) for record in fabric.book.hosts.values()]


def free_bytes(fabric: Fabric, host: HostName) -> int:
    """Reported free memory less promises; what was last reported if the host is not connected."""
    report = fabric.fleet.report(host)
    if report is None:
        return fabric.fleet.last_free_bytes(host)
    shown = {vm.id for vm in report.vms}
    promised = {vm.id for vm in fabric.book.living_on(host)}
    promised |= {move.vm for move in fabric.book.moves_at(host) if move.target == host}
    return max(report.memory_free_bytes - sum(_memory_bytes(fabric, vm) for vm in promised - shown), 0)


def _memory_bytes(fabric: Fabric, vm: VmId) -> int:
    record = fabric.book.vms.get(vm)
    return record.request.memory_bytes if record is not None else 0
