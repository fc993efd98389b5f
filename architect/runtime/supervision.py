"""Supervision: one process kept running, started again with a growing pause when it ends.

The task that runs `KeptProcess.run` owns the keeping, not the process: cancelled, it lets the process go on, so that a supervisor
may be replaced while what it supervises works. The process may be one that an earlier supervisor started (`adopted`).
"""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from architect.errors import ArchitectError
from architect.runtime.clock import Clock
from architect.runtime.processes import ProcessIdentity, wait_exit

_log = logging.getLogger(__name__)


class Backoff(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long to pause before a restart: doubling from `first_s` to `most_s`, afresh after `healthy_after_s` without an end."""

    first_s: float = 0.1
    most_s: float = 5.0
    healthy_after_s: float = 10.0

    def pause_s(self, failures: int) -> float:
        """The pause after that many short lives in a row."""
        return min(self.first_s * float(1 << min(failures, 30)), self.most_s)


class Running(Protocol):
    """A process that runs, and can be waited for."""

    @property
    def identity(self) -> ProcessIdentity:
        """Which process it is."""
        ...

    async def wait(self) -> int | None:
        """Wait for its end; the exit status where we are its parent (minus the signal's number where a signal ended it)."""
        ...


class ChildProcess:
    """A process that we started, and reap."""

    def __init__(self, identity: ProcessIdentity, child: subprocess.Popen[bytes]) -> None:
        self.identity = identity
        self._child = child

    async def wait(self) -> int | None:
        """As `Running.wait`."""
        await wait_exit(self.identity)
        return self._child.wait()  # it has ended: this reaps and does not block


class AdoptedProcess:
    """A process that somebody before us started; init reaps it."""

    def __init__(self, identity: ProcessIdentity) -> None:
        self.identity = identity

    async def wait(self) -> int | None:
        """As `Running.wait`."""
        await wait_exit(self.identity)
        return None


class KeptProcess:
    """One process that is to run always.

    :param name: how logs call it.
    :param start: starts it.
    :param started: told of each start, to keep a record.
    :param adopted: one that runs already.
    """

    def __init__(
        self,
        name: str,
        start: Callable[[], Awaitable[Running]],
        started: Callable[[ProcessIdentity], None],
        clock: Clock,
        *,
        adopted: Running | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        self.name = name
        self._start = start
        self._started = started
        self._clock = clock
        self._running = adopted
        self._backoff = backoff or Backoff()
        self.failures = 0
        self.last_end = ""

    @property
    def running(self) -> Running | None:
        """The process that runs now, if one does."""
        return self._running

    @property
    def identity(self) -> ProcessIdentity | None:
        """Which process runs now, if one does."""
        return self._running.identity if self._running is not None else None

    async def run(self) -> None:
        """Keep it running, for ever. Cancelled, it leaves the process alone."""
        while True:
            begin_s = self._clock.monotonic_s()
            try:
                if self._running is None:
                    self._running = await self._start()
                    self._tell(self._running.identity)
                status = await self._running.wait()
                self.last_end = _describe(status)
            except ArchitectError as error:
                self.last_end = f"cannot start: {error}"
            self._running = None
            lived_s = self._clock.monotonic_s() - begin_s
            self.failures = 0 if lived_s >= self._backoff.healthy_after_s else self.failures + 1
            pause_s = self._backoff.pause_s(max(self.failures - 1, 0))
            _log.warning("%s %s after %.1f s; started again in %.1f s", self.name, self.last_end, lived_s, pause_s)
            await self._clock.sleep(pause_s)

    def _tell(self, process: ProcessIdentity) -> None:
        """A record that cannot be written (a full disk) is no reason to start the process twice."""
        try:
            self._started(process)
        except ArchitectError as error:
            _log.warning("%s runs, but that cannot be recorded: %s", self.name, error)


def _describe(status: int | None) -> str:
    if status is None:
        return "ended"
    return f"ended by signal {-status}" if status < 0 else f"exited with status {status}"
