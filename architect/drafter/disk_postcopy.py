"""The disk of a move that cannot wait: the target runs on a fresh overlay while the source's writes are still on their way.

::

    before   disk ← overlay                     ← base
    attached disk ← overlay-1 (fresh) ← remote (qcow2, read-only, over the source's frozen file by NBD) ← base
    stream   disk ← [copy on read] ← overlay-1 ← remote ← base      the job copies what remote has; reads go first
    done     disk ← overlay-1                   ← base

The source's overlay is opened as a file, not as a disk, so the base stays local. While the stream runs the VM needs the source: if
the connection breaks, reads of what has not arrived stop the guest (`DiskFailed`), they do not fail in it.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from architect.drafter.block_job import JobProgress, find_job, wait_job
from architect.drafter.block_node import OverlayNode, delete_fdset, delete_nodes, find_overlay, nodes_by_name
from architect.drafter.disk_export import FROZEN
from architect.drafter.machine import Machine
from architect.drafter.qemu_command import NODE_BASE, NODE_DISK, file_node, overlay_node
from architect.errors import ArchitectError

JOB = "stream"
REMOTE_NODE = "remote"
REMOTE_FILE_NODE = "remote-file"


async def attach_remote(machine: Machine, connection: int, fresh_overlay: Path) -> None:
    """Put a fresh overlay over the source's frozen one under the disk of a target that has not resumed.

    `connection` is a connected socket at whose other end is the source's `frozen` export; it stays the caller's to close. The old
    overlay is closed and may be deleted. On failure the disk is as before.

    Raises:
        OutcomeUnknownError: the other end did not answer in time; the disk is as before.
        HostError: no such export at the other end, or what it offers is no overlay.
    """
    qmp = machine.qmp
    old = await find_overlay(qmp, machine.name)
    base = NODE_BASE if NODE_BASE in await nodes_by_name(qmp) else None
    fresh = OverlayNode(f"overlay-{old.generation + 1}", old.generation + 1, await _add_file(machine, fresh_overlay))
    try:
        await machine.disk_links.open(REMOTE_FILE_NODE, connection, FROZEN, read_only=True)
        remote = overlay_node(REMOTE_NODE, REMOTE_FILE_NODE, base, machine.host_fsync) | {"read-only": True}
        await qmp.execute("blockdev-add", remote)
        await qmp.execute("blockdev-add", file_node(fresh.file, fresh.fdset, machine.host_fsync))
        await qmp.execute("blockdev-add", overlay_node(fresh.name, fresh.file, REMOTE_NODE, machine.host_fsync))
        await _stand_on(machine, fresh.name)
    except BaseException:
        with contextlib.suppress(ArchitectError):
            await delete_nodes(qmp, fresh.name, fresh.file, REMOTE_NODE, REMOTE_FILE_NODE)
            await delete_fdset(qmp, fresh.fdset)
        machine.disk_links.cut(REMOTE_FILE_NODE)
        raise
    await delete_nodes(qmp, old.name, old.file)
    await delete_fdset(qmp, old.fdset)


async def start_stream(machine: Machine, *, speed_bytes_s: int = 0) -> None:
    """Begin to copy what has not arrived, once the VM has resumed. From here on reads copy, too. Idempotent.

    An error of the connection pauses the job (`is_stream_broken`), it does not end it.
    """
    qmp = machine.qmp
    nodes = await nodes_by_name(qmp)
    if REMOTE_NODE not in nodes or await find_job(qmp, JOB) is not None:
        return
    overlay = await find_overlay(qmp, machine.name)
    arguments = {"job-id": JOB, "device": overlay.name, "speed": speed_bytes_s, "on-error": "stop", "auto-dismiss": True}
    if NODE_BASE in nodes:
        # The file's header stays free of a base's name. Without a base all of `remote` is copied, and the chain ends here.
        arguments |= {"base-node": NODE_BASE, "backing-file": ""}
    await qmp.execute("block-stream", arguments)


async def stream_progress(machine: Machine) -> JobProgress | None:
    """How the stream stands, None if there is none (any more)."""
    return await find_job(machine.qmp, JOB)


async def is_stream_broken(machine: Machine) -> bool:
    """Whether the stream stands because the source cannot be read any more: what has not arrived never will."""
    jobs = await machine.qmp.execute("query-block-jobs")
    return any(found["device"] == JOB and found["io-status"] != "ok" for found in jobs)


async def complete_stream(machine: Machine, timeout_s: float | None) -> None:
    """Wait until everything has arrived and let go of the source: it may be destroyed afterwards. Idempotent.

    Raises:
        HostError: the stream failed; the source is still needed.
        TimeoutError: it still runs.
    """
    await wait_job(machine.qmp, machine.name, JOB, timeout_s)
    await delete_nodes(machine.qmp, REMOTE_NODE, REMOTE_FILE_NODE)
    machine.disk_links.cut(REMOTE_FILE_NODE)


async def _add_file(machine: Machine, path: Path) -> int:
    fdset: int | None = None
    for flags in (os.O_RDWR, os.O_RDONLY):
        descriptor = os.open(path, flags | os.O_CLOEXEC)
        try:
            arguments = {} if fdset is None else {"fdset-id": fdset}
            fdset = int((await machine.qmp.execute("add-fd", arguments, fd=descriptor))["fdset-id"])
        finally:
            os.close(descriptor)
    assert fdset is not None
    return fdset


async def _stand_on(machine: Machine, node: str) -> None:
    options = {"driver": "throttle", "node-name": NODE_DISK, "throttle-group": "limits", "file": node}
    await machine.qmp.execute("blockdev-reopen", {"options": [options]})
