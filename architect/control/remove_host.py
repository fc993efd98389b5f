"""Forgetting a host: only one that runs nothing, or that is lost for good."""

from __future__ import annotations

from architect.control.fabric import Fabric
from architect.control.records import EventKind, HostRecord
from architect.errors import ConflictError


async def remove_host(fabric: Fabric, name: str) -> HostRecord:
    """Forget the host and close its agent's connection. VMs that were lost with it stay listed as lost.

    Raises:
        NotFoundError: there is no such host.
        ConflictError: VMs are on it, or move to it.
    """
    async with fabric.book.change() as change:
        record = fabric.book.find_host(name)
        book = fabric.book
        on_it = sorted(vm.request.name for vm in book.vms_on(record.name) if not vm.state.is_terminal)
        on_it += sorted(move.vm_name for move in book.moves_at(record.name) if move.target == name)
        if on_it:
            raise ConflictError(f"host {name}", f"has vm {', '.join(on_it)}", f"`architect host drain {name}` first")
        change.delete(record)
        change.say(EventKind.HOST_REMOVED, host=name)
    fabric.fleet.forget(record.name)
    return record
