"""A connection that QEMU uses as an NBD client: made here, as this user, and handed over as a descriptor."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path

from architect.drafter.qmp import QmpConnection, short_socket_path
from architect.errors import UnavailableError

CONNECT_TIMEOUT_S = 5.0


async def pass_connection(qmp: QmpConnection, vm: str, path: Path, name: str) -> None:
    """Connect to the unix socket at `path` and give the connection to QEMU under `name`; used up by the node that names it.

    Raises:
        UnavailableError: nobody listens there.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    with sock, contextlib.ExitStack() as stack:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await asyncio.get_running_loop().sock_connect(sock, short_socket_path(path, stack))
        except (OSError, TimeoutError) as error:
            raise UnavailableError(f"{vm}: disk server {path}", str(error) or "no answer", "see whether the peer serves") from error
        await qmp.execute("getfd", {"fdname": name}, fd=sock.fileno())


def fd_address(name: str) -> dict[str, str]:
    """QEMU's address of a connection that `pass_connection` gave to it."""
    return {"type": "fd", "str": name}
