"""The index of a qcow2 that is read over a connection: had whole before anything copies on read from it.

`block-stream` puts a copy-on-read filter above the overlay, in the way of the guest's reads. The filter asks which blocks the
remote file has. If that cannot be told, because the part of the file's index that says it cannot be read, it takes that for the end
of the file: the read *succeeds*, and the guest gets what is in its buffer (`cor_co_preadv_part`, QEMU 7.2.22 and 10.0.2).
So the question must never need the connection: the node keeps all that it has read of the index (`CACHE_WHOLE_INDEX`), and
`load_index` has it read all parts. Reads of the blocks themselves fail as they should.

No command of the monitor does that without holding QEMU up. So the node is exported by NBD for a moment, and one sector is read for
each part of the index; QEMU does sixteen at a time, and the guest runs meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from architect.drafter.block_node import nodes_by_name
from architect.drafter.disk_export import start_export, stop_exports
from architect.drafter.machine import Machine
from architect.errors import HostError
from architect.runtime.socket_paths import short_socket_path

CACHE_WHOLE_INDEX: dict[str, object] = {"l2-cache-size": 1 << 40, "cache-clean-interval": 0}
"""Options of a qcow2 node. It takes as much memory as the index needs: 1/8192 of the disk, less where nothing was written."""
SILENCE_S = 20.0

_EXPORT = "index"
_AT_ONCE = 16
_SECTOR_BYTES = 512
_INDEX_ENTRY_BYTES = 16  # 8, or 16 with subclusters
_GREETING = struct.Struct(">8s8sH")
_CHOICE = struct.Struct(">I8sII")
_OFFER = struct.Struct(">QH")
_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")
_OPTION_MAGIC, _REQUEST_MAGIC = b"IHAVEOPT", 0x25609513
_FIXED_NEWSTYLE_NO_ZEROES, _EXPORT_NAME = 3, 1


async def load_index(machine: Machine, node: str) -> None:
    """Have QEMU read the whole index of the qcow2 `node`, which keeps it. Repeatable.

    Raises:
        HostError: a part of it cannot be read, or does not come.
    """
    image = (await nodes_by_name(machine.qmp))[node]["image"]
    step = int(image["cluster-size"]) ** 2 // _INDEX_ENTRY_BYTES
    await stop_exports(machine)  # of an agent before us
    path = await start_export(machine, _EXPORT, node)
    try:
        async with _connected(path) as (reader, writer):
            places = range(0, int(image["virtual-size"]), step)
            for first in range(0, len(places), _AT_ONCE):
                await _read_sectors(reader, writer, places[first : first + _AT_ONCE])
    except TimeoutError as error:
        machine.disk_links.cut(f"{node}-file")  # or QEMU would wait for it when the export ends
        raise _unreadable(machine, f"nothing came for {SILENCE_S:g} s") from error
    except (OSError, EOFError) as error:
        raise _unreadable(machine, str(error)) from error
    finally:
        await stop_exports(machine)


def _unreadable(machine: Machine, cause: str) -> HostError:
    return HostError(
        f"{machine.name}: disk", f"the source's index of it cannot be read ({cause})", "take up another connection to the source"
    )


@asynccontextmanager
async def _connected(path: Path) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to QEMU's export, ready for requests."""
    with short_socket_path(path) as address:
        reader, writer = await asyncio.open_unix_connection(address)
    try:
        await _exactly(reader, _GREETING.size)
        name = _EXPORT.encode()
        writer.write(_CHOICE.pack(_FIXED_NEWSTYLE_NO_ZEROES, _OPTION_MAGIC, _EXPORT_NAME, len(name)) + name)
        await _exactly(reader, _OFFER.size)
        yield reader, writer
    finally:
        writer.transport.abort()


async def _read_sectors(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, places: range) -> None:
    """Read a sector at each place; what is in it does not matter."""
    for place in places:
        writer.write(_REQUEST.pack(_REQUEST_MAGIC, 0, 0, place, place, _SECTOR_BYTES))
    for _ in places:
        _, failure, _ = _REPLY.unpack(await _exactly(reader, _REPLY.size))
        if failure:
            raise OSError(failure, os.strerror(failure))
        await _exactly(reader, _SECTOR_BYTES)


async def _exactly(reader: asyncio.StreamReader, count: int) -> bytes:
    async with asyncio.timeout(SILENCE_S):
        return await reader.readexactly(count)
