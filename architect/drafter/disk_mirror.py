"""The disk of a move, at the source: a job that copies the overlay to the target's and follows the guest's writes.

The bytes leave by a connected socket that the caller passes; at its other end is the target's export (`disk_export`), and the
memory processes carry them between the hosts. The end is part of the pause: the guest is stopped, the job is told to end, and only
its event and its absence from the list of jobs say that the last writes have arrived; nothing else does (DESIGN §3).

    mirror = DiskMirror(machine)
    await mirror.start(connection.fileno())
    await mirror.wait_ready(timeout_s=600)
    await machine.pause()
    await mirror.finish()
    await mirror.cancel()         # only if the VM stays
"""

from __future__ import annotations

from typing import Any

from architect.drafter.block_job import JobProgress, abandon_job, find_job, finish_job, wait_ready
from architect.drafter.block_node import delete_nodes, nodes_by_name
from architect.drafter.machine import Machine
from architect.drafter.qemu_command import NODE_DISK
from architect.errors import HostError

JOB = "mirror"
TARGET_NODE = "mirror-target"
EXPORT = "disk"
FINISH_TIMEOUT_S = 10.0


class DiskMirror:
    """The mirror of one machine; there is at most one. Holds no state of its own, so a restarted agent makes a new one."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._qmp = machine.qmp

    async def start(self, connection: int, *, speed_bytes_s: int = 0) -> None:
        """Begin to copy to the export `disk` of the NBD server at the other end of `connection`, which stays the caller's to close.

        On failure nothing of it is left. QEMU stands still for the NBD handshake, about three round trips.

        Raises:
            OutcomeUnknownError: the other end did not answer in time; the link was cut, nothing is left.
            HostError: there is no such export, the disks differ in size, or a mirror exists.
        """
        await self._machine.disk_links.open(TARGET_NODE, connection, EXPORT, read_only=False)
        try:
            await self._check_sizes()
            # A mirror starts only at the top of a stack; "top" then means the overlay, because a filter is not counted as a layer.
            arguments = {
                "job-id": JOB, "device": NODE_DISK, "target": TARGET_NODE, "sync": "top", "copy-mode": "background",
                "speed": speed_bytes_s, "auto-dismiss": True,
            }  # fmt: skip
            await self._qmp.execute("blockdev-mirror", arguments)
        except BaseException:
            if await find_job(self._qmp, JOB) is None:
                await delete_nodes(self._qmp, TARGET_NODE)
            raise

    async def _check_sizes(self) -> None:
        nodes = await nodes_by_name(self._qmp)
        ours, theirs = (int(nodes[name]["image"]["virtual-size"]) for name in (NODE_DISK, TARGET_NODE))
        if ours != theirs:
            raise HostError(
                f"{self._machine.name}: mirror", f"the target's disk has {theirs} bytes, not {ours}", "make it as large"
            )

    async def wait_ready(self, timeout_s: float) -> None:
        """Wait until the target has everything but what the guest is writing now.

        Raises:
            HostError: the copy failed; carries QEMU's error. `cancel` then.
            TimeoutError: it still copies.
        """
        await wait_ready(self._qmp, self._machine.name, JOB, timeout_s)

    async def progress(self) -> JobProgress | None:
        """How it stands, None if there is no mirror (any more)."""
        return await find_job(self._qmp, JOB)

    async def finish(self, timeout_s: float = FINISH_TIMEOUT_S) -> None:
        """End it with both disks equal. The guest is paused; afterwards all that it ever wrote is at the target.

        The node and the connection stay, which costs the pause nothing; `cancel` takes them away if the VM stays here.

        Raises:
            HostError: the last writes may not have arrived: the target's disk must not be used. JobGoneError: it failed before.
            TimeoutError: neither may be said; the same holds.
        """
        # QEMU ends a mirror that has caught up well, and cancels one that has not.
        await finish_job(self._qmp, self._machine.name, JOB, "block-job-cancel", {"device": JOB}, timeout_s)
        if left := await self._qmp.execute("query-block-jobs"):
            raise HostError(f"{self._machine.name}: mirror", f"jobs are left: {_names(left)}", "cancel the move")

    def cut(self) -> None:
        """Break its connection, without QEMU: it fails, and nothing waits for a silent peer any more. Idempotent."""
        self._machine.disk_links.cut(TARGET_NODE)

    async def cancel(self) -> None:
        """End it as it is and remove all of it. Idempotent; also for a mirror that an earlier agent started, or that failed.

        The connection is cut first, so that a peer that is silent holds up nothing.
        """
        self.cut()
        await abandon_job(self._qmp, JOB)
        await delete_nodes(self._qmp, TARGET_NODE)


def _names(jobs: list[dict[str, Any]]) -> str:
    return ", ".join(str(job["device"]) for job in jobs)
