"""Forgetting a host: only one that has nothing of any VM, or that is lost for good."""

from __future__ import annotations

from architect.control.fabric import Fabric
from architect.control.records import EventKind, HostRecord
from architect.control.rooms import why_gone_for_good
from architect.errors import ConflictError
from architect.model.ids import HostName


def needed_for(fabric: Fabric, host: HostName) -> list[str]:
    """The names of the VMs that are on the host, that a move has not let go of there, or that run elsewhere and still have some of
    their memory or disk there.
    """
    book = fabric.book
    names = {vm.request.name for vm in book.living_on(host)}
    names |= {move.vm_name for move in book.moves_at(host) if move.source == host}
    if not why_gone_for_good(fabric, host):
        fed = [vm.id for report in fabric.fleet.reports().values() for vm in report.vms if vm.fills_from == host]
        names |= {book.vms[vm].request.name for vm in fed if vm in book.vms}
    return sorted(names)


async def remove_host(fabric: Fabric, name: str, *, force: bool = False) -> HostRecord:
    """Forget the host and close its agent's connection. VMs that were lost with it stay listed as lost.

    :param force: also if VMs need it: they are lost.

    Raises:
        NotFoundError: there is no such host.
        ConflictError: VMs need it, or move to it.
    """
    async with fabric.book.change() as change:
        record = fabric.book.find_host(name)
        coming = [move.vm_name for move in fabric.book.moves_at(record.name) if move.target == name]
        if not force and (needing := sorted({*needed_for(fabric, record.name), *coming})):
            cause = f"has vm {', '.join(needing)}, or some of its memory or disk"
            raise ConflictError(f"host {name}", cause, f"`architect host drain {name}` first, and wait until all has left")
        change.delete(record)
        change.say(EventKind.HOST_REMOVED, host=name)
    fabric.fleet.forget(record.name)
    return record
