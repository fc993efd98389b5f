"""What both ends of a handover use: its output log, base disks, dialling the other agent, the tunnels of its memory process."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

from architect.agent.host import Host
from architect.agent.hosted_vm import HostedVm
from architect.agent.vm_parts import VmParts
from architect.errors import HostError, NotFoundError, PeerError
from architect.migration.source_actions import MIRROR_TUNNEL, POSTCOPY_TUNNEL
from architect.runtime.rpc import Channel, open_channel
from architect.runtime.tls import client_context, san_name
from architect.silo.memory_client import MemoryProcess
from architect.wire.agent_messages import HostFacts
from architect.wire.migration_messages import MigrationMessage

ANSWER_TIMEOUT_S = 5.0

BASE_PARTS_QUEUED_MAX = 4


class VmLog:
    """`LogPort`: one VM's output on this host."""

    def __init__(self, vm: HostedVm) -> None:
        self._vm = vm

    async def size(self) -> int:
        """As the port says."""
        return self._vm.log.size_bytes

    async def read(self, offset: int, count: int) -> tuple[tuple[int, bytes], ...]:
        """As the port says."""
        return await asyncio.to_thread(self._vm.log.read_file, offset, count)

    async def append(self, offset: int, data: bytes) -> None:
        """As the port says."""
        await asyncio.to_thread(self._vm.log.write_file, offset, data)


class Bases:
    """`BasePort`: this host's store of base disks. A base comes in one piece or not at all: what was cut off starts anew."""

    def __init__(self, host: Host) -> None:
        self._store = host.bases
        self._parts: asyncio.Queue[tuple[int, bytes] | None] | None = None
        self._importing: asyncio.Task[Path] | None = None
        self._position = 0

    async def present_bytes(self, digest: str, size_bytes: int) -> int:
        """As the port says."""
        return size_bytes if self._store.get(digest) is not None else 0

    async def read(self, digest: str, offset: int, count: int) -> bytes:
        """As the port says."""
        path = self._store.get(digest)
        if path is None:
            raise NotFoundError(f"base disk {digest[:12]}", "is not here", "run the image again")

        def pread() -> bytes:
            with path.open("rb") as file:
                return os.pread(file.fileno(), count, offset)

        return await asyncio.to_thread(pread)

    async def write(self, digest: str, size_bytes: int, offset: int, data: bytes) -> None:
        """As the port says."""
        if offset == 0:
            await self._give_up()
            self._parts, self._position = asyncio.Queue(BASE_PARTS_QUEUED_MAX), 0
            self._importing = asyncio.create_task(self._store.import_chunks(digest, size_bytes, self._chunks(self._parts)))
        if self._parts is None or self._importing is None or offset != self._position:
            raise PeerError(f"base disk {digest[:12]}", f"part at {offset} is out of order", "send it from the start")
        self._position += len(data)
        is_last = self._position >= size_bytes
        for part in ((offset, data), None) if is_last else ((offset, data),):
            putting = asyncio.ensure_future(self._parts.put(part))
            await asyncio.wait((putting, self._importing), return_when=asyncio.FIRST_COMPLETED)
            putting.cancel()
        if is_last:
            importing, self._importing, self._parts = self._importing, None, None
            await importing
        elif self._importing.done():  # it has failed; or another move has brought the base meanwhile, and the rest is let pass
            self._importing.result()

    async def _give_up(self) -> None:
        if self._importing is not None:
            self._importing.cancel()
            await asyncio.wait((self._importing,))
            self._importing = None

    @staticmethod
    async def _chunks(parts: asyncio.Queue[tuple[int, bytes] | None]) -> AsyncIterator[tuple[int, bytes]]:
        while (part := await parts.get()) is not None:
            if part[1].count(0) != len(part[1]):
                yield part


class TargetDial:
    """`DialPort`: the agent of the target host."""

    def __init__(self, host: Host, target: HostFacts) -> None:
        self._host = host
        self._target = target

    async def dial(self) -> Channel:
        """As the port says."""
        return await open_channel(
            (self._target.address, self._target.migration_port),
            MigrationMessage,
            None,
            f"host {self._target.name}",
            tls=client_context(Path(self._host.config.tls_dir)),
            server_name=san_name(f"agent:{self._target.name}"),
        )


def parts_of(vm: HostedVm) -> VmParts:
    """The VM's running parts.

    Raises:
        HostError: they are gone.
    """
    if vm.parts is None:
        raise HostError(f"vm {vm.record.request.name}", "its processes are gone from this host", "see `architect events`")
    return vm.parts


async def close_tunnels(memory: MemoryProcess) -> None:
    """Close the tunnels of an earlier move."""
    for name in (MIRROR_TUNNEL, POSTCOPY_TUNNEL):
        await memory.tunnel_close(name)


async def listen_tunnel(vm: HostedVm, name: str) -> str:
    """A unix path: who connects there is carried through that tunnel, by the memory process that there is now.

    Raises:
        HostError: the VM's processes are gone.
    """
    path = str(vm.folder.memory / f"{name}.sock")
    await parts_of(vm).memory.tunnel_listen(name, path)
    return path


async def connect_answered(path: str | Path, timeout_s: float = ANSWER_TIMEOUT_S) -> socket.socket:
    """As `connect_unix`, to one who speaks first: returns when there is something to read, all of it still unread.

    Raises:
        HostError: nobody listens there, or who does says nothing in time.
    """
    connection = connect_unix(path)
    readable = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(connection, readable.set)
    try:
        async with asyncio.timeout(timeout_s):
            await readable.wait()
        if not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
            raise ConnectionResetError("it was closed")
    except BaseException as error:
        loop.remove_reader(connection)
        connection.close()
        if not isinstance(error, OSError):  # TimeoutError is one
            raise
        cause = "the other end says nothing" if isinstance(error, TimeoutError) else str(error)
        raise HostError(f"socket {path}", cause, "see the host at the other end") from error
    loop.remove_reader(connection)
    return connection


def connect_unix(path: str | Path) -> socket.socket:
    """A connected socket to a unix path of ours; the caller closes it.

    Raises:
        HostError: nobody listens there.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(str(path))
    except OSError as error:
        connection.close()
        raise HostError(f"socket {path}", str(error), "see whether the VM's processes still run") from error
    return connection
