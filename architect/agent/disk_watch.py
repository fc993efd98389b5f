"""What becomes of a guest that its disk has stopped: it goes on as soon as the disk does.

QEMU stops a guest whose read or write failed at the host (`werror=stop`: the host's disk is full, or a block of a post-copy's disk
is out of reach) and keeps the request, so nothing is lost and the guest never sees the error. The VM is reported paused, with the
reason, and QEMU is told to try again now and then: a try that fails stops the guest anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from architect.drafter.disk_postcopy import RemoteState
from architect.drafter.machine import Machine
from architect.drafter.machine_event import DiskFailed
from architect.errors import ArchitectError
from architect.runtime.clock import Clock

TRY_EVERY_S = 2.0
TRIED_FOR_S = 0.5
FAILED = "io-error"

_log = logging.getLogger(__name__)


class DiskWatch:
    """Watches over one machine's disk until `run` is cancelled.

    :param host: how reasons name it.
    :param source: the host at which blocks of the disk may still be.
    :param remote: how it stands with them.
    :param may_resume: whether nobody else has the guest stand still.
    :param changed: called when `reason` has changed.
    """

    def __init__(
        self,
        host: str,
        machine: Machine,
        clock: Clock,
        source: Callable[[], str],
        remote: Callable[[], Awaitable[RemoteState]],
        may_resume: Callable[[], bool],
        changed: Callable[[], None],
    ) -> None:
        self.reason = ""
        self._host = host
        self._machine = machine
        self._clock = clock
        self._source = source
        self._remote = remote
        self._may_resume = may_resume
        self._changed = changed
        self._failure = ""
        self._stopped = asyncio.Event()

    def failed(self, event: DiskFailed) -> None:
        """QEMU says that a request has failed."""
        if event.stopped and event.no_space:
            self._stop(f"the disk of host {self._host} is full")
        elif event.stopped:
            self._failure = f"failed a {event.operation} ({event.reason})"
            self._stopped.set()

    def _stop(self, reason: str) -> None:
        self._stopped.set()
        if reason != self.reason:
            _log.warning("%s: stopped by its disk: %s", self._machine.name, reason)
            self.reason = reason
            self._changed()

    async def _explain(self, failure: str) -> None:
        """QEMU names the disk as a whole; whose part of it failed is another question."""
        try:
            state = await self._remote()
        except ArchitectError as error:
            _log.warning("%s: its disk is not known: %s", self._machine.name, error)
            self._stop(f"its disk {failure}")
            return
        if state is not RemoteState.NONE:
            self._stop(f"its disk {failure}: blocks of it are still at host {self._source()} ({state})")
        else:
            self._stop(f"the disk of host {self._host} {failure}")

    async def run(self) -> None:
        """Let the guest go on, each time it was stopped, when its disk does. Never returns."""
        try:
            if await self._machine.status() == FAILED:
                await self._explain("failed while no agent watched")
        except ArchitectError as error:
            _log.warning("%s: its state is not known: %s", self._machine.name, error)
        while True:
            await self._stopped.wait()
            failure, self._failure = self._failure, ""
            if failure:
                await self._explain(failure)
            await self._clock.sleep(TRY_EVERY_S)
            if self._may_resume() and not await self._is_out_of_reach():
                await self._try()

    async def _is_out_of_reach(self) -> bool:
        """Whether a try could only fail, because the way to blocks that are elsewhere is broken: it is taken up first."""
        try:
            return (await self._remote()) is RemoteState.BROKEN
        except ArchitectError:
            return False

    async def _try(self) -> None:
        self._stopped.clear()
        self._failure = ""
        try:
            await self._machine.resume()
            if not self._may_resume():
                await self._machine.pause()  # somebody has told it to stand between our question and our answer
            await self._clock.sleep(TRIED_FOR_S)
            runs = await self._machine.status() != FAILED
        except ArchitectError as error:
            _log.warning("%s: cannot be told to go on: %s", self._machine.name, error)
            runs = False
        if not runs or self._stopped.is_set():
            self._stopped.set()
            return
        _log.info("%s: goes on", self._machine.name)
        self.reason = ""
        self._changed()
