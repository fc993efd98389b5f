"""A connection over which QEMU reads or writes a disk elsewhere, with a way to cut it that needs no answer from QEMU.

QEMU stands still, guest and monitor alike, while it opens an NBD connection and while `stop` waits for requests that are under way
on one. A peer that falls silent would hold it there for as long as TCP waits. So we keep a descriptor of the very same socket:
`shutdown` on ours ends QEMU's, whose requests then fail at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
from typing import Any

from architect.drafter.block_node import delete_nodes
from architect.drafter.qmp import QmpConnection
from architect.errors import OutcomeUnknownError

OPEN_TIMEOUT_S = 5.0
_AFTER_CUT_TIMEOUT_S = 5.0


class DiskLinks:
    """The links of one machine by the name of the node that uses each."""

    def __init__(self, qmp: QmpConnection) -> None:
        self._qmp = qmp
        self._sockets: dict[str, socket.socket] = {}

    async def open(self, name: str, connection: int, export: str, *, read_only: bool) -> None:
        """Add the node `name`, an NBD client of `export` over the connected socket `connection`, which stays the caller's.

        Raises:
            QmpRefusedError: there is no such export, or what is at the other end is no NBD server.
            OutcomeUnknownError: it did not answer in OPEN_TIMEOUT_S, and was cut; no node was made.
        """
        self.cut(name)
        self._sockets[name] = socket.socket(fileno=socket.dup(connection))
        try:
            await self._qmp.execute("getfd", {"fdname": name}, fd=connection)
            node: dict[str, Any] = {"driver": "nbd", "node-name": name, "export": export, "read-only": read_only}
            node["server"] = {"type": "fd", "str": name}
            await self._qmp.execute("blockdev-add", node, timeout_s=OPEN_TIMEOUT_S)
        except BaseException as error:
            self.cut(name)
            if isinstance(error, OutcomeUnknownError):
                # The answer that comes now is dropped as late; it may even be that the node was made.
                async with asyncio.timeout(_AFTER_CUT_TIMEOUT_S):
                    await delete_nodes(self._qmp, name)
            raise

    def cut(self, name: str) -> None:
        """End the link: whatever QEMU waits for over it fails now. Idempotent; only for links that this agent opened."""
        if (sock := self._sockets.pop(name, None)) is not None:
            with contextlib.suppress(OSError), sock:
                sock.shutdown(socket.SHUT_RDWR)

    def is_broken(self, name: str) -> bool | None:
        """Whether the link has ended; None: this agent has not opened one of that name, or has cut it."""
        if (sock := self._sockets.get(name)) is None:
            return None
        poll = select.poll()
        poll.register(sock, select.POLLRDHUP)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Let go of all links, which live on in QEMU. Idempotent."""
        while self._sockets:
            self._sockets.popitem()[1].close()
