"""Nodes of a machine's disk, offered by NBD at its `nbd.sock`: to the source's mirror, and for a moment to us (`remote_index`).

The mirror is offered a target's overlay, writable. That must be gone before the VM resumes, and before that VM's own next move.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from architect.drafter.block_node import find_overlay
from architect.drafter.machine import Machine
from architect.drafter.qmp import QmpRefusedError, listening_socket
from architect.errors import HostError

INCOMING = "incoming"
INCOMING_NAME = "disk"
_DELETE_TIMEOUT_S = 5.0


async def start_incoming_export(machine: Machine) -> Path:
    """Offer the overlay of a target for writing. Returns the unix socket's path; the export's name is `disk`. Idempotent."""
    overlay = await find_overlay(machine.qmp, machine.name)
    return await start_export(machine, INCOMING, overlay.name, name=INCOMING_NAME, writable=True)


async def start_export(machine: Machine, export: str, node: str, *, name: str = "", writable: bool = False) -> Path:
    """Offer a node, the only one at a time, as `name` (`export` without one). Returns the unix socket's path. Idempotent."""
    path = machine.run_dir / "nbd.sock"
    qmp = machine.qmp
    exports = await qmp.execute("query-block-exports")
    if any(not found["shutting-down"] for found in exports):
        return path
    if not exports:
        await _stop_server(machine)
        with listening_socket(path) as listener:
            await qmp.execute("getfd", {"fdname": "nbd-listener"}, fd=listener.fileno())
        await qmp.execute("nbd-server-start", {"addr": {"type": "fd", "data": {"str": "nbd-listener"}}, "max-connections": 8})
    offer = {"type": "nbd", "id": export, "node-name": node, "name": name or export, "writable": writable}
    await qmp.execute("block-export-add", offer)
    return path


async def stop_exports(machine: Machine) -> None:
    """Take back what is offered; afterwards nobody but the VM uses its disk. Idempotent."""
    qmp = machine.qmp
    with qmp.listen("BLOCK_EXPORT_DELETED") as listener:
        for found in await qmp.execute("query-block-exports"):
            with _already("not found", "already shutting down"):
                await qmp.execute("block-export-del", {"id": found["id"], "mode": "hard"})
            try:
                await qmp.next_event(listener, _DELETE_TIMEOUT_S)
            except TimeoutError as error:
                raise HostError(f"{machine.name}: export {found['id']}", "it does not end", "end the VM's QEMU") from error
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
