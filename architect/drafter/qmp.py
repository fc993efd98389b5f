"""QMP with deadlines and typed errors, over `qemu.qmp`.

Every command has a deadline. An answer that does not come in time leaves the outcome unknown (QEMU may be blocked on a page that
is still on its way, DESIGN §4): the connection stays usable, a late answer is dropped. Commands go out one at a time, because
QEMU runs them one at a time and because a descriptor sent with SCM_RIGHTS belongs to the command that follows it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from qemu.qmp import ConnectError, EventListener, ExecInterruptedError, ExecuteError, QMPClient, QMPError, Runstate

from architect.drafter.pinning import check_arguments
from architect.errors import HostError, OutcomeUnknownError, PeerError, UnavailableError
from architect.runtime.socket_paths import short_socket_path
from architect.runtime.thread_places import thread_places

COMMAND_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 10.0
# The library logs what it raises, on this logger; the errors say it all.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL + 1)
_log = logging.getLogger(__name__)
_BLOCKED_NEXT_STEP = "see query-status before a retry; the guest may be waiting for memory or disk"


class QmpRefusedError(HostError):
    """QEMU answered a command with an error. `command` and `description` are QEMU's."""

    code = "qmp"

    def __init__(self, vm: str, command: str, description: str) -> None:
        super().__init__(f"{vm}: QMP {command}", description, "see the VM's qemu.log")
        self.command = command
        self.description = description


class QmpConnection:
    """One QMP session. `vm` is how errors name the machine; `pid` is QEMU's process."""

    def __init__(self, client: QMPClient, vm: str, pid: int) -> None:
        self._client = client
        self._vm = vm
        self._pid = pid
        self._lock = asyncio.Lock()
        self._closed = False

    @property
    def is_open(self) -> bool:
        """Whether commands can be sent."""
        return not self._closed and self._client.runstate == Runstate.RUNNING

    @property
    def qemu_version(self) -> str:
        """`7.2.22`, from QEMU's greeting."""
        version: Any = self._client.greeting.QMP.version["qemu"] if self._client.greeting else {}
        return ".".join(str(version.get(part, "?")) for part in ("major", "minor", "micro"))

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        timeout_s: float = COMMAND_TIMEOUT_S,
        fd: int | None = None,
    ) -> Any:
        """Run a command and return its value; `fd` is sent along for `getfd` and `add-fd` and stays the caller's to close.

        Raises:
            QmpRefusedError: QEMU refused.
            OutcomeUnknownError: no answer within `timeout_s`, or the connection ended first.
            UnavailableError: the connection had ended before; nothing was sent.
            PinnedMemoryError: the arguments would make QEMU pin guest memory; nothing was sent.
        """
        check_arguments(arguments)
        try:
            async with asyncio.timeout(timeout_s):
                async with self._lock:
                    if not self.is_open:
                        raise UnavailableError(f"{self._vm}: QMP {command}", "QEMU's monitor is gone", "see whether QEMU runs")
                    if fd is not None:
                        self._send_fd(fd)
                    return await self._client.execute(command, arguments)
        except TimeoutError as error:
            _log.warning(
                "%s: QMP %s: no answer in %s s; QEMU's threads: %s", self._vm, command, timeout_s, thread_places(self._pid)
            )
            raise OutcomeUnknownError(f"{self._vm}: QMP {command}", f"no answer in {timeout_s} s", _BLOCKED_NEXT_STEP) from error
        except ExecuteError as error:
            raise QmpRefusedError(self._vm, command, str(error)) from error
        except (ExecInterruptedError, OSError, EOFError) as error:
            raise OutcomeUnknownError(
                f"{self._vm}: QMP {command}", "QEMU went away", "see whether QEMU runs, and its log"
            ) from error
        except QMPError as error:
            raise PeerError(f"{self._vm}: QMP {command}", f"QEMU's answer is no QMP: {error}", "see the VM's qemu.log") from error

    def _send_fd(self, fd: int) -> None:
        # The library's own way writes beside its stream; its buffer is empty, because every command waits for its answer.
        self._client.send_fd_scm(fd)

    @contextlib.contextmanager
    def listen(self, *names: str) -> Iterator[EventListener]:
        """Collect the named events (all, if none is named) from now on; read them with `next_event`."""
        listener = EventListener(names or None)
        with self._client.listen(listener):
            yield listener

    async def next_event(self, listener: EventListener, timeout_s: float | None = None) -> Mapping[str, Any]:
        """The next collected event.

        Raises:
            UnavailableError: the connection ended and nothing is left to read.
            TimeoutError: none came within `timeout_s`.
        """
        async with asyncio.timeout(timeout_s):
            if listener.empty() and self.is_open:
                getting = asyncio.ensure_future(listener.get())
                closing = asyncio.ensure_future(self.wait_closed())
                try:
                    await asyncio.wait({getting, closing}, return_when=asyncio.FIRST_COMPLETED)
                    if getting.done():
                        return cast(Mapping[str, Any], getting.result())
                finally:
                    for task in (getting, closing):
                        task.cancel()
                    await asyncio.gather(getting, closing, return_exceptions=True)
            if listener.empty():
                raise UnavailableError(f"{self._vm}: QMP", "QEMU's monitor is gone", "see whether QEMU runs, and its log")
            return cast(Mapping[str, Any], await listener.get())

    async def events(self, *names: str) -> AsyncIterator[Mapping[str, Any]]:
        """Every event from now until the connection ends."""
        with self.listen(*names) as listener:
            while True:
                try:
                    yield await self.next_event(listener)
                except UnavailableError:
                    return

    async def wait_closed(self) -> None:
        """Return when the connection has ended, whoever ended it."""
        while self.is_open:
            await self._client.runstate_changed()

    async def close(self) -> None:
        """Let go of the monitor; QEMU runs on and takes the next client. Idempotent, bounded."""
        self._closed = True
        if self._client.runstate == Runstate.IDLE:
            return
        with contextlib.suppress(Exception):  # whatever ended the session before is raised here again
            async with asyncio.timeout(2):
                await self._client.disconnect()


async def connect_qmp(path: Path, vm: str, pid: int, timeout_s: float = CONNECT_TIMEOUT_S) -> QmpConnection:
    """Connect to a monitor's unix socket and negotiate. `pid`: QEMU's (the socket's peer is who made it, not who serves it).

    Raises:
        UnavailableError: nobody listens there, it hung up, or it did not greet in time.
        PeerError: what answers there does not speak QMP.
    """
    client = QMPClient(vm)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        async with asyncio.timeout(timeout_s):
            with short_socket_path(path) as address:
                sock.connect(address)
            await client.connect(sock)
    except (OSError, TimeoutError, ConnectError) as error:
        sock.close()
        cause = error.exc if isinstance(error, ConnectError) else error
        if isinstance(cause, OSError | EOFError | TimeoutError):
            raise UnavailableError(
                f"{vm}: QMP", f"no monitor at {path}: {cause!r}", "see whether QEMU runs, and its log"
            ) from error
        raise PeerError(f"{vm}: QMP", f"{path} does not speak QMP: {cause}", "see what listens there") from error
    return QmpConnection(client, vm, pid)


def listening_socket(path: Path) -> socket.socket:
    """A unix socket that listens at `path`, replacing what was there; readable by its owner only."""
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        with short_socket_path(path) as address:
            sock.bind(address)
        path.chmod(0o600)
        sock.listen(1)
    except BaseException:
        sock.close()
        raise
    return sock
