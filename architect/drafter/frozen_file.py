"""The frozen file: the overlay of a guest that is stopped for good, as a file that says all that the guest ever wrote.

A target of a post-copy opens it as qcow2 over the same base (`disk_postcopy`), so that only what the VM wrote travels, and the base
never does. QEMU is not needed for that any more: whoever serves the file may go on when QEMU has died.

A qcow2's index is cached in QEMU. `stop` writes it, but says nothing of a refusal (a full disk), so it is written once more in a
way that tells: to reopen a qcow2 with the options that it has writes both caches (`qcow2_update_options_prepare`). Nothing can be
in them afterwards: the guest stands, and there is no job.
"""

from __future__ import annotations

import os
from pathlib import Path

from architect.drafter.block_node import find_overlay, nodes_by_name
from architect.drafter.machine import Machine
from architect.drafter.qemu_command import NODE_BASE, overlay_node
from architect.errors import ConflictError, HostError

_STANDS = ("paused", "postmigrate")


async def freeze_overlay(machine: Machine) -> Path:
    """See that the overlay's file of a stopped guest is whole; returns where it is. Idempotent; the guest may go on afterwards.

    Raises:
        ConflictError: the guest runs.
        HostError: what the guest wrote cannot all be written to the file (the host's disk is full), or the file is gone.
    """
    if (status := await machine.status()) not in _STANDS:
        raise ConflictError(f"{machine.name}: disk", f"the guest is {status}", "pause it first: stopping writes the file's index")
    qmp = machine.qmp
    overlay = await find_overlay(qmp, machine.name)
    base = NODE_BASE if NODE_BASE in await nodes_by_name(qmp) else None
    await qmp.execute("blockdev-reopen", {"options": [overlay_node(overlay.name, overlay.file, base, machine.host_fsync)]})
    for fdset in await qmp.execute("query-fdsets"):
        if fdset["fdset-id"] == overlay.fdset and fdset["fds"]:
            return _path_of(machine, int(fdset["fds"][0]["fd"]))
    raise HostError(f"{machine.name}: disk", f"QEMU has no descriptor set {overlay.fdset}", "report this as a defect")


def _path_of(machine: Machine, descriptor: int) -> Path:
    """Where the file is now that QEMU has open: names may change, and only QEMU knows which file it writes."""
    link = f"/proc/{machine.qemu_pid}/fd/{descriptor}"
    try:
        path = Path(os.readlink(link))
        if os.path.samestat(os.stat(link), path.stat()):
            return path
        cause = f"{path} is another file"
    except OSError as error:
        cause = str(error)
    raise HostError(f"{machine.name}: disk", f"its overlay has no name any more ({cause})", "see the VM's folder")
