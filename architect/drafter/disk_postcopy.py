"""The disk of a move that cannot wait: the target runs on a fresh overlay while the source's writes are still on their way.

::

    before   disk ← overlay                     ← base
    attached disk ← overlay-1 (fresh) ← remote (qcow2, read-only, over the source's frozen file by NBD) ← base
    stream   disk ← [copy on read] ← overlay-1 ← remote ← base      the job copies what remote has; reads go first
    broken   disk ← overlay-1 ← remote-1 ← base                     another connection; the stream begins anew
    done     disk ← overlay-1                   ← base

The source's overlay is opened as a file, not as a disk, so the base stays local. Its index is read whole before the stream begins,
because the copy-on-read filter must not fail to read it (`remote_index`). While the stream runs the VM needs the source: if
the connection breaks, reads of what has not arrived stop the guest (`DiskFailed`), they do not fail in it. What is there stays
there, so `reattach_remote` goes on over another connection.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path

from architect.drafter.block_job import JobProgress, abandon_job, find_job, wait_job
from architect.drafter.block_node import OverlayNode, delete_fdset, delete_nodes, find_overlay, nodes_by_name
from architect.drafter.disk_export import stop_exports
from architect.drafter.machine import Machine
from architect.drafter.qemu_command import NODE_BASE, NODE_DISK, file_node, file_of, overlay_node
from architect.drafter.qmp import QmpRefusedError
from architect.drafter.remote_index import CACHE_WHOLE_INDEX, load_index
from architect.errors import ArchitectError

JOB = "stream"
REMOTE_NODE = "remote"
EXPORT = "frozen"
_REMOTE = re.compile(r"remote(?:-(\d+))?")


class StreamTrouble(StrEnum):
    """Why a stream stands."""

    BROKEN = "the source cannot be read any more"
    STOPPED = "it was stopped, most likely by the host's full disk; it may be told to go on"


class RemoteState(StrEnum):
    """Whether the disk still needs the source, and can reach it."""

    NONE = "all blocks are here"
    CONNECTED = "the connection there stands"
    BROKEN = "the connection there is broken"
    UNKNOWN = "whether the connection there stands is not known yet"


async def attach_remote(machine: Machine, connection: int, fresh_overlay: Path) -> None:
    """Put a fresh overlay over the source's frozen one under the disk of a target that has not resumed.

    `connection` is a connected socket at whose other end the source's file (`frozen_file`) is served; it stays the caller's to
    close. The old overlay is closed and may be deleted. On failure the disk is as before.

    Raises:
        OutcomeUnknownError: the other end did not answer in time; the disk is as before.
        HostError: no NBD server at the other end, or what it offers is no overlay.
    """
    qmp = machine.qmp
    old = await find_overlay(qmp, machine.name)
    base = NODE_BASE if NODE_BASE in await nodes_by_name(qmp) else None
    fresh = OverlayNode(f"overlay-{old.generation + 1}", old.generation + 1, await _add_file(machine, fresh_overlay))
    try:
        await _add_remote(machine, connection, REMOTE_NODE, base)
        await qmp.execute("blockdev-add", file_node(fresh.file, fresh.fdset, machine.host_fsync))
        await qmp.execute("blockdev-add", overlay_node(fresh.name, fresh.file, REMOTE_NODE, machine.host_fsync))
        await _stand_on(machine, fresh.name)
    except BaseException:
        with contextlib.suppress(ArchitectError):
            await delete_nodes(qmp, fresh.name, fresh.file)
            await delete_fdset(qmp, fresh.fdset)
        await _remove_remote(machine, REMOTE_NODE)
        raise
    await delete_nodes(qmp, old.name, old.file)
    await delete_fdset(qmp, old.fdset)


async def reattach_remote(machine: Machine, connection: int) -> None:
    """Put the disk on another connection to the same file, after the one before broke; `start_stream` is next.

    Blocks that have arrived stay. On failure the disk is as before: repeat it. Nothing is done if all has arrived.

    Raises:
        OutcomeUnknownError, HostError: as `attach_remote`.
    """
    qmp = machine.qmp
    await abandon_job(qmp, JOB)
    nodes = await nodes_by_name(qmp)
    if not (present := _remotes(nodes)):
        return
    # A predecessor of this agent, or an answer that came late, may have left one that the overlay does not stand on.
    overlay = await find_overlay(qmp, machine.name)
    base = NODE_BASE if NODE_BASE in nodes else None
    fresh = f"{REMOTE_NODE}-{1 + max(present.values())}"
    for name in present:
        machine.disk_links.cut(file_of(name))  # whoever reads there still fails at once
    await stop_exports(machine)  # of an agent that was killed while it read the index
    try:
        await _add_remote(machine, connection, fresh, base)
        await qmp.execute("blockdev-reopen", {"options": [overlay_node(overlay.name, overlay.file, fresh, machine.host_fsync)]})
    except BaseException:
        await _remove_remote(machine, fresh)
        raise
    for name in present:
        await _remove_remote(machine, name)


async def remote_state(machine: Machine) -> RemoteState:
    """How it stands with the blocks that are still at the source."""
    present = _remotes(await nodes_by_name(machine.qmp))
    if not present:
        return RemoteState.NONE
    newest = max(present, key=lambda name: present[name])
    is_broken = machine.disk_links.is_broken(file_of(newest))
    if is_broken is None and await stream_trouble(machine) is StreamTrouble.BROKEN:
        is_broken = True
    return RemoteState.UNKNOWN if is_broken is None else RemoteState.BROKEN if is_broken else RemoteState.CONNECTED


async def start_stream(machine: Machine, *, speed_bytes_s: int = 0) -> None:
    """Begin to copy what has not arrived, once the VM has resumed. From here on reads copy, too. Idempotent.

    An error of the connection pauses the job (`stream_trouble`), it does not end it.

    Raises:
        HostError: the connection is broken already; `reattach_remote` comes first.
    """
    qmp = machine.qmp
    nodes = await nodes_by_name(qmp)
    if not (present := _remotes(nodes)) or await find_job(qmp, JOB) is not None:
        return
    for name in present:  # one, but for what an agent left that was killed
        await load_index(machine, name)
    overlay = await find_overlay(qmp, machine.name)
    arguments = {"job-id": JOB, "device": overlay.name, "speed": speed_bytes_s, "on-error": "stop", "auto-dismiss": True}
    if NODE_BASE in nodes:
        # The file's header stays free of a base's name. Without a base all of `remote` is copied, and the chain ends here.
        arguments |= {"base-node": NODE_BASE, "backing-file": ""}
    await qmp.execute("block-stream", arguments)


async def stream_progress(machine: Machine) -> JobProgress | None:
    """How the stream stands, None if there is none (any more)."""
    return await find_job(machine.qmp, JOB)


async def stream_trouble(machine: Machine) -> StreamTrouble | None:
    """Why the stream stands; None if it does not, or is over.

    A guest that is told to go on (`cont`) resets the error of each job, but sets none of them going: a job that stands without an
    error has had one, and finds out by trying again.
    """
    for found in await machine.qmp.execute("query-block-jobs"):
        if found["device"] == JOB and (found["io-status"] != "ok" or found["status"] == "paused"):
            return StreamTrouble.BROKEN if found["io-status"] == "failed" else StreamTrouble.STOPPED
    return None


async def resume_stream(machine: Machine) -> None:
    """Try again what the stream stands at."""
    with contextlib.suppress(QmpRefusedError):  # it goes on already, or is over
        await machine.qmp.execute("block-job-resume", {"device": JOB})


async def complete_stream(machine: Machine, timeout_s: float | None) -> None:
    """Wait until everything has arrived and let go of the source: it may be destroyed afterwards. Idempotent.

    Raises:
        HostError: the stream failed; the source is still needed.
        TimeoutError: it still runs.
    """
    await wait_job(machine.qmp, machine.name, JOB, timeout_s)
    for name in _remotes(await nodes_by_name(machine.qmp)):
        await delete_nodes(machine.qmp, name, file_of(name))
        machine.disk_links.cut(file_of(name))


def _remotes(nodes: Iterable[str]) -> dict[str, int]:
    """The nodes of connections to the source, each with its number."""
    return {name: int(match[1] or 0) for name in nodes if (match := _REMOTE.fullmatch(name)) is not None}


async def _add_remote(machine: Machine, connection: int, name: str, base: str | None) -> None:
    await machine.disk_links.open(file_of(name), connection, EXPORT, read_only=True)
    remote = overlay_node(name, file_of(name), base, machine.host_fsync) | {"read-only": True} | CACHE_WHOLE_INDEX
    await machine.qmp.execute("blockdev-add", remote)


async def _remove_remote(machine: Machine, name: str) -> None:
    machine.disk_links.cut(file_of(name))
    with contextlib.suppress(ArchitectError):
        await delete_nodes(machine.qmp, name, file_of(name))


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
