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
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from architect.drafter.block_node import nodes_by_name
from architect.drafter.disk_export import start_export, stop_exports
from architect.drafter.machine import Machine
from architect.drafter.qemu_command import file_of
from architect.errors import HostError
from architect.runtime.socket_paths import short_socket_path
from architect.wire import nbd

CACHE_WHOLE_INDEX: dict[str, object] = {"l2-cache-size": 1 << 40, "cache-clean-interval": 0}
"""Options of a qcow2 node. It takes as much memory as the index needs: 1/8192 of the disk, less where nothing was written."""
SILENCE_S = 20.0

_EXPORT = "index"
_AT_ONCE = 16
_SECTOR_BYTES = 512
_INDEX_ENTRY_BYTES = 16  # 8, or 16 with subclusters


async def load_index(machine: Machine, node: str) -> None:
    """Have QEMU read the whole index of the qcow2 `node`, which keeps it. Repeatable. Cancelled, it ends at once: what is offered
    then is taken back by who comes next, or goes with QEMU, which may not answer.

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
        machine.disk_links.cut(file_of(node))  # or QEMU would wait for it when the export ends
        await stop_exports(machine)
        raise _unreadable(machine, f"nothing came for {SILENCE_S:g} s") from error
    except (OSError, EOFError, nbd.NbdError) as error:
        await stop_exports(machine)
        raise _unreadable(machine, str(error)) from error
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
        nbd.check_greeting(await _exactly(reader, nbd.GREETING_BYTES))
        writer.write(nbd.pack_choice(_EXPORT))
        nbd.parse_export(await _exactly(reader, nbd.EXPORT_BYTES))
        yield reader, writer
    finally:
        writer.transport.abort()


async def _read_sectors(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, places: range) -> None:
    """Read a sector at each place; what is in it does not matter."""
    for place in places:
        writer.write(nbd.pack_request(nbd.Request(nbd.Command.READ, cookie=place, offset=place, length=_SECTOR_BYTES)))
    unanswered = set(places)
    while unanswered:
        reply = nbd.parse_reply(await _exactly(reader, nbd.REPLY_BYTES))
        if reply.error:
            raise OSError(reply.error, os.strerror(reply.error))
        if reply.cookie not in unanswered:
            raise nbd.NbdError("NBD reply", f"is to {reply.cookie}, which is not under way", "report this with QEMU's version")
        unanswered.remove(reply.cookie)
        await _exactly(reader, _SECTOR_BYTES)


async def _exactly(reader: asyncio.StreamReader, count: int) -> bytes:
    async with asyncio.timeout(SILENCE_S):
        return await reader.readexactly(count)
