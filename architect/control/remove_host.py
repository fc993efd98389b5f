"""Forgetting a host: only one that runs nothing and feeds nothing, or that is lost for good."""

from __future__ import annotations

from architect.control.fabric import Fabric
from architect.control.records import EventKind, HostRecord
from architect.control.rooms import why_gone_for_good
from architect.errors import ConflictError
from architect.model.ids import HostName


async def remove_host(fabric: Fabric, name: str) -> HostRecord:
    """Forget the host and close its agent's connection. VMs that were lost with it stay listed as lost.

    Raises:
        NotFoundError: there is no such host.
        ConflictError: VMs are on it, move from it or to it, or run elsewhere and have some of their memory or disk there.
    """
    async with fabric.book.change() as change:
        record = fabric.book.find_host(name)
        book = fabric.book
        on_it = sorted(vm.request.name for vm in book.vms_on(record.name) if not vm.state.is_terminal)
        on_it += sorted(move.vm_name for move in book.moves_at(record.name) if move.vm_name not in on_it)
        if on_it:
            raise ConflictError(f"host {name}", f"has vm {', '.join(on_it)}", f"`architect host drain {name}` first")
        if (fed := _fed_by(fabric, record.name)) and not why_gone_for_good(fabric, record.name):
            has = f"still has some of the memory or disk of vm {', '.join(fed)}"
            raise ConflictError(f"host {name}", has, "wait until it has all arrived, see `architect ps`")
        change.delete(record)
        change.say(EventKind.HOST_REMOVED, host=name)
    fabric.fleet.forget(record.name)
    return record


def _fed_by(fabric: Fabric, host: HostName) -> list[str]:
    """The names of VMs that run elsewhere and still need what the host has of them."""
    seen = [vm.id for report in fabric.fleet.reports().values() for vm in report.vms if vm.fills_from == host]
    return sorted(fabric.book.vms[vm].request.name for vm in seen if vm in fabric.book.vms)
