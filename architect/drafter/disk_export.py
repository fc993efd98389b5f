"""The disk of a move, where it is offered to the other side: NBD exports at the machine's `nbd.sock`.

Two exports exist. `incoming` is the target's overlay, writable, for the source's mirror; it must be gone before the VM resumes and
before that VM's own next move. `frozen` is the source's overlay *file*, read-only, while its guest is stopped for good: the target
opens it as qcow2 over the same base (`disk_postcopy`), so that only what the VM wrote travels, and the base never does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from architect.drafter.block_node import delete_nodes, find_overlay
from architect.drafter.machine import Machine
from architect.drafter.qmp import QmpRefusedError, listening_socket
from architect.errors import ConflictError, HostError

INCOMING = "incoming"
INCOMING_NAME = "disk"
FROZEN = "frozen"
FROZEN_NODE = "frozen-file"
_DELETE_TIMEOUT_S = 5.0


async def start_incoming_export(machine: Machine) -> Path:
    """Offer the overlay of a target for writing. Returns the unix socket's path; the export's name is `disk`. Idempotent."""
    overlay = await find_overlay(machine.qmp, machine.name)
    return await _export(machine, INCOMING, overlay.name, INCOMING_NAME, writable=True)


async def stop_incoming_export(machine: Machine) -> None:
    """Take the offer back; afterwards nobody but the VM writes its disk. Idempotent."""
    await _unexport(machine, INCOMING)


async def start_frozen_export(machine: Machine) -> Path:
    """Offer the overlay's file of a stopped guest for reading, as `frozen`. Returns the socket's path. Idempotent.

    Raises:
        ConflictError: the guest runs, so that the file is not whole.
    """
    if (status := await machine.status()) not in ("paused", "postmigrate"):
        raise ConflictError(f"{machine.name}: disk", f"the guest is {status}", "pause it first: stopping writes the file's index")
    overlay = await find_overlay(machine.qmp, machine.name)
    # Locks are between processes; within this one the overlay itself holds the file.
    node = {
        "driver": "file", "node-name": FROZEN_NODE, "filename": f"/dev/fdset/{overlay.fdset}", "read-only": True,
        "locking": "off", "aio": "threads", "cache": {"direct": False, "no-flush": True},
    }  # fmt: skip
    with _already("Duplicate nodes"):
        await machine.qmp.execute("blockdev-add", node)
    return await _export(machine, FROZEN, FROZEN_NODE, FROZEN, writable=False)


async def has_frozen_export(machine: Machine) -> bool:
    """Whether the overlay's file is on offer."""
    return any(found["id"] == FROZEN for found in await machine.qmp.execute("query-block-exports"))


async def stop_frozen_export(machine: Machine) -> None:
    """Take the offer back, before the guest may run again. Idempotent."""
    await _unexport(machine, FROZEN)
    await delete_nodes(machine.qmp, FROZEN_NODE)


async def _export(machine: Machine, export: str, node: str, name: str, *, writable: bool) -> Path:
    path = machine.run_dir / "nbd.sock"
    qmp = machine.qmp
    exports = await qmp.execute("query-block-exports")
    if not any(found["id"] == export and not found["shutting-down"] for found in exports):
        if not exports:
            await _stop_server(machine)
            with listening_socket(path) as listener:
                await qmp.execute("getfd", {"fdname": "nbd-listener"}, fd=listener.fileno())
            await qmp.execute("nbd-server-start", {"addr": {"type": "fd", "data": {"str": "nbd-listener"}}, "max-connections": 8})
        await qmp.execute("block-export-add", {"type": "nbd", "id": export, "node-name": node, "name": name, "writable": writable})
    return path


async def _unexport(machine: Machine, export: str) -> None:
    qmp = machine.qmp
    with qmp.listen("BLOCK_EXPORT_DELETED") as listener:
        exports = [str(found["id"]) for found in await qmp.execute("query-block-exports")]
        if export in exports:
            with _already("not found", "already shutting down"):
                await qmp.execute("block-export-del", {"id": export, "mode": "hard"})
            try:
                while (await qmp.next_event(listener, _DELETE_TIMEOUT_S))["data"].get("id") != export:
                    pass
            except TimeoutError as error:
                raise HostError(f"{machine.name}: export {export}", "it does not end", "end the VM's QEMU") from error
    if exports in ([], [export]):
        await _stop_server(machine)


async def _stop_server(machine: Machine) -> None:
    with _already("not running"):
        await machine.qmp.execute("nbd-server-stop")
    (machine.run_dir / "nbd.sock").unlink(missing_ok=True)


@contextlib.contextmanager
def _already(*phrases: str) -> Iterator[None]:
    """Let QEMU's refusal pass if it says that things are already as they are to be."""
    try:
        yield
    except QmpRefusedError as error:
        if not any(phrase in error.description for phrase in phrases):
            raise
