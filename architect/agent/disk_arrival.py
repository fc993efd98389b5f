"""The rest of a disk that a guest at the target already runs on: awaited, over connections that may break.

The blocks come from the source's QEMU through the memory processes of both hosts (`drafter.disk_postcopy`). One of these that is
killed, or a link that is cut, breaks QEMU's connection; what has not arrived is still there, so the disk is put on another one. The
guest stands meanwhile if it wants such a block (`agent.disk_watch` lets it go on), however long that takes: whether what is missing
can come yet is another's question (`migration.source_watch`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable

from architect.drafter.disk_postcopy import (
    StreamTrouble,
    complete_stream,
    reattach_remote,
    resume_stream,
    start_stream,
    stream_trouble,
)
from architect.drafter.machine import Machine
from architect.errors import ArchitectError, LostError, OutcomeUnknownError
from architect.runtime.cancellation import check_cancelled
from architect.runtime.clock import Clock

DISK_FILL_TIMEOUT_S = 3600.0
STREAM_LOOK_S = 1.0
RETRY_S = 0.5

_log = logging.getLogger(__name__)


class DiskArrival:
    """One disk that comes.

    :param vm: how errors name it.
    :param source: the host that has what has not arrived.
    :param connect: a new connection to what the source offers; closed here.
    """

    def __init__(
        self, vm: str, source: str, machine: Machine, connect: Callable[[], Awaitable[socket.socket]], clock: Clock
    ) -> None:
        self._vm = vm
        self._source = source
        self._machine = machine
        self._connect = connect
        self._clock = clock

    async def wait_present(self) -> None:
        """Until all of it is here. An agent before us may have begun.

        Raises:
            LostError: it never will be.
        """
        while True:
            try:
                await start_stream(self._machine)
                await self._complete()
                return
            except ArchitectError as error:
                check_cancelled()
                await self._take_up(error)

    async def _complete(self) -> None:
        completing = asyncio.create_task(complete_stream(self._machine, DISK_FILL_TIMEOUT_S))
        try:
            while not (await asyncio.wait((completing,), timeout=STREAM_LOOK_S))[0]:
                match await stream_trouble(self._machine):
                    case StreamTrouble.BROKEN:
                        raise self._lost("the connection broke before all of it had arrived")
                    case StreamTrouble.STOPPED:
                        await resume_stream(self._machine)
            await completing
        finally:
            completing.cancel()

    async def _take_up(self, error: ArchitectError) -> None:
        """Put the disk on another connection, or wait for a QEMU that waits for a block from a source that is silent."""
        may_go_on = isinstance(error, OutcomeUnknownError)
        _log.warning("vm %s: its disk does not come (%s)", self._vm, error.cause)
        while self._machine.is_running:
            try:
                if may_go_on and await stream_trouble(self._machine) is None:
                    return
                may_go_on = False
                with contextlib.closing(await self._connect()) as connection:
                    await reattach_remote(self._machine, connection.fileno())
                _log.warning("vm %s: its disk comes over another connection", self._vm)
                return
            except ArchitectError as again:
                check_cancelled()
                error = again
            await self._clock.sleep(RETRY_S)
        raise self._lost(f"its QEMU has ended; at last: {error.cause}") from error

    def _lost(self, cause: str) -> LostError:
        where = f"blocks of it are still at host {self._source} and cannot be had"
        return LostError(f"disk of vm {self._vm}", f"{where} ({cause})", f"see host {self._source}")
