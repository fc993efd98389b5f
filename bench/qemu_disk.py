"""The disk of a VM that QEMU moves where storage is not shared, as libvirt does it: a mirror to an NBD export of the target.

The target has an empty overlay over the same base, so that only what the guest wrote travels. The mirror has caught up before the
memory is sent; it is ended while the guest is stopped (capability `pause-before-switchover`), and then the migration goes on.

QEMU's log has "Permission conflict on node 'overlay'" after each such move, also after one that went well: the target runs by
itself, and its disk wants to be the only writer a moment before the export is taken back. It is no reason of a failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

from architect.drafter.disk_export import start_incoming_export, stop_exports
from architect.drafter.disk_mirror import DiskMirror
from architect.drafter.machine import Machine
from architect.errors import ArchitectError, HandoverError
from architect.runtime.socket_paths import short_socket_path


class DiskCopy:
    """The disk's part of one migration from `source` to `target`."""

    def __init__(self, source: Machine, target: Machine, timeout_s: float) -> None:
        self._source = source
        self._target = target
        self._mirror = DiskMirror(source)
        self._timeout_s = timeout_s
        self.bytes = 0

    async def catch_up(self) -> None:
        """Copy the disk until the target has all but what is being written.

        Raises:
            HandoverError: that takes too long.
            HostError: QEMU failed.
        """
        path = await start_incoming_export(self._target)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection, short_socket_path(path) as name:
            connection.connect(name)
            await self._mirror.start(connection.fileno())
        try:
            await self._mirror.wait_ready(self._timeout_s)
        except TimeoutError as error:
            raise HandoverError("mirror of the disk", f"not done in {self._timeout_s:.0f} s", "write less") from error

    async def finish(self) -> None:
        """End it with both disks equal; the guest is stopped. Raises: HostError: they are not."""
        with self._source.qmp.listen("BLOCK_JOB_COMPLETED") as listener:
            await self._mirror.finish()
            if not listener.empty():
                self.bytes = int((await listener.get())["data"]["offset"])

    async def close(self) -> None:
        """The move went well: the target's disk is its own."""
        await stop_exports(self._target)

    async def give_up(self) -> None:
        """After a failure: the source keeps its disk."""
        with contextlib.suppress(ArchitectError, TimeoutError):
            await asyncio.shield(self._mirror.cancel())
