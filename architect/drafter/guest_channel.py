"""GuestChannel: what a host can ask of a guest, and what it hears from it.

One per VM, on the host where the VM is. Log records come in order, none twice and none left out, over disconnections, restarts of
the agent and moves, as long as the next channel is given the position at which the last one stopped; a record is acknowledged when
`on_log` has returned. The wire is in `guest_link` and `guest_protocol`.
"""

from __future__ import annotations

import asyncio
import enum
import errno
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType

import msgspec

from architect.drafter.guest_exec import GuestExec, gone_error, new_exec_id
from architect.drafter.guest_link import GuestLink, GuestRefusedError, GuestSilentError
from architect.drafter.guest_payloads import (
    CLOCK,
    EXIT,
    FREEZE,
    HOOK,
    LOG,
    PONG,
    SEED_BYTES,
    SIGNAL,
    GuestConfig,
    GuestReady,
    Pong,
    TerminalSize,
    pack_configure,
    pack_process,
    unpack,
)
from architect.drafter.guest_protocol import POSITION_OF_GUEST, FrameType, GuestFrame, GuestProtocolError
from architect.model.image import ProcessConfig
from architect.runtime.cancellation import check_cancelled
from architect.runtime.clock import Clock, Entropy, SystemClock, SystemEntropy

REQUEST_TIMEOUT_S = 10.0
CONFIGURE_TIMEOUT_S = 60.0
CLOCK_SAMPLES = 3
_NS = 1_000_000_000


class LogStream(enum.IntEnum):
    """Who wrote a log record: the workload's standard output or error, or the guest's own init and its hooks."""

    STDOUT = 1
    STDERR = 2
    SYSTEM = 3


class LogRecord(msgspec.Struct, frozen=True):
    """A piece of the log. `seq` counts from 1; `realtime_ns` is the guest's clock when it was written."""

    stream: LogStream
    seq: int
    realtime_ns: int
    data: bytes


class GuestHook(enum.Enum):
    """Programs of the image in /etc/architect/hooks that are told of a pause."""

    BEFORE_SUSPEND = 1
    AFTER_RESUME = 2
    AFTER_RESTORE = 3


class ClockCorrection(msgspec.Struct, frozen=True):
    """How far the guest was behind (negative: ahead), and the round trip of the best measurement."""

    offset_ns: int
    round_trip_ns: int


OnLog = Callable[[LogRecord], Awaitable[None]]


class GuestChannel:
    """A guest's channel, as an async context: it connects, and reconnects, from entry to exit.

    :param socket_path: the unix socket at which QEMU serves the port.
    :param guest: how errors name the guest, e.g. ``VM web``.
    :param on_log: takes each log record; what it raises ends the channel and surfaces at the context's exit.
    :param log_position: the last record that was taken before; None: the guest goes on behind what was last acknowledged to it (a
        template, a clone, a VM that was restored from an epoch and has gone back in time).
    """

    def __init__(
        self,
        socket_path: Path,
        guest: str,
        on_log: OnLog,
        log_position: int | None = None,
        clock: Clock | None = None,
        entropy: Entropy | None = None,
    ) -> None:
        self._link = GuestLink(socket_path, guest, self)
        self._on_log = on_log
        self._log_position = log_position
        self._clock = clock or SystemClock()
        self._entropy = entropy or SystemEntropy()
        self._execs: dict[int, GuestExec] = {}
        self._exit_code: int | None = None
        self._exited = asyncio.Event()
        self._ready: GuestReady | None = None
        self._tasks = asyncio.TaskGroup()
        self._run_task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> GuestChannel:
        await self._tasks.__aenter__()
        self._run_task = self._tasks.create_task(self._link.run())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._run_task is not None:
            self._run_task.cancel()
        try:
            await self._tasks.__aexit__(kind, error, trace)
        except BaseExceptionGroup as group:
            # One error is shown as itself: the block's own, or, where the block was cancelled because of it, the channel's.
            if error is not None and not isinstance(error, asyncio.CancelledError):
                return
            check_cancelled()
            if len(group.exceptions) > 1:
                raise
            raise group.exceptions[0] from None

    @property
    def log_position(self) -> int | None:
        """The last record that `on_log` has taken; None before anything is known."""
        return self._log_position

    @property
    def exit_code(self) -> int | None:
        """The workload's exit code once all its log is here, None before."""
        return self._exit_code

    @property
    def ready(self) -> GuestReady | None:
        """What the guest said of itself at the start of the last session."""
        return self._ready

    async def wait_ready(self, timeout_s: float) -> GuestReady:
        """Wait until the guest has booted and a session is there.

        Raises:
            GuestSilentError: not within `timeout_s`.
            IncompatibleError: the guest speaks another version of the protocol.
        """
        await self._link.wait_ready(timeout_s)
        assert self._ready is not None
        return self._ready

    async def wait_exit(self) -> int:
        """The workload's exit code (128 + signal where one ended it), once it has exited and all its log is here."""
        await self._exited.wait()
        assert self._exit_code is not None
        return self._exit_code

    async def configure(self, config: GuestConfig, timeout_s: float = CONFIGURE_TIMEOUT_S) -> None:
        """Make the guest this VM: entropy, date, disk, names, network. To a configured guest: a new identity (a clone's).

        Raises:
            GuestRefusedError: it could not; the cause names what.
        """
        payload = pack_configure(config, round(self._clock.wall_s() * _NS), self._entropy.random_bytes(SEED_BYTES))
        await self._link.request(FrameType.CONFIGURE, payload, timeout_s)

    async def start(self, process: ProcessConfig, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        """Start the workload. A command that is not found shows as exit code 127, one that is not executable as 126.

        Raises:
            GuestRefusedError: not configured, or started before (`status` EALREADY).
        """
        await self._link.request(FrameType.START, pack_process(process, None), timeout_s)

    async def signal(self, number: int, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        """Signal the workload's first process. To stop it, send its stop signal, and SIGKILL when that did not help.

        Raises:
            GuestRefusedError: it does not run (`status` ESRCH).
        """
        await self._link.request(FrameType.SIGNAL, SIGNAL.pack(number), timeout_s)

    async def ping(self, timeout_s: float = REQUEST_TIMEOUT_S) -> Pong:
        """The guest's clocks; proves that it lives."""
        frame = await self._link.request(FrameType.PING, b"", timeout_s)
        return Pong(*unpack(PONG, frame, self._link.guest))

    async def set_clock(self, timeout_s: float = REQUEST_TIMEOUT_S) -> ClockCorrection:
        """Correct the guest's date by this host's; to be called after every pause.

        Up to a second forward, and always backward, the guest slews; further forward it steps. A call replaces what is left of the
        one before. The offset is measured as NTP does, from the fastest of a few round trips.
        """
        best = min([await self._measure_offset(timeout_s) for _ in range(CLOCK_SAMPLES)], key=lambda sample: sample.round_trip_ns)
        await self._link.request(FrameType.CLOCK, CLOCK.pack(best.offset_ns), timeout_s)
        return best

    async def run_hook(self, hook: GuestHook, timeout_s: float) -> bool:
        """Run a hook of the image, in at most `timeout_s`; False where the image has none.

        Raises:
            GuestRefusedError: it failed (`status` EIO) or was killed (ETIMEDOUT).
        """
        payload = HOOK.pack(hook.value, round(timeout_s * 1000))
        try:
            await self._link.request(FrameType.HOOK, payload, timeout_s + REQUEST_TIMEOUT_S)
        except GuestRefusedError as error:
            if error.status == errno.ENOENT:
                return False
            raise
        return True

    async def set_frozen(self, frozen: bool, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        """Freeze or thaw the workload and its exec sessions: around a clone's change of identity.

        Raises:
            GuestRefusedError: a process did not stand still within `timeout_s` of the guest's time (`status` ETIMEDOUT), and all
                go on; or another such request waits (EBUSY).
        """
        payload = FREEZE.pack(frozen, round(timeout_s * 1000))
        await self._link.request(FrameType.FREEZE, payload, timeout_s + REQUEST_TIMEOUT_S)

    async def power_off(self, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        """Have the guest kill everything, write its disk and switch the machine off. Answered before it does."""
        await self._link.request(FrameType.POWEROFF, b"", timeout_s)

    async def exec_start(
        self, process: ProcessConfig, terminal: TerminalSize | None = None, timeout_s: float = REQUEST_TIMEOUT_S
    ) -> GuestExec:
        """Start a process beside the workload, with a terminal of that size or with pipes. Close the session when done with it.

        Raises:
            GuestRefusedError: no workload runs (`status` ESRCH), or too many sessions are open (EAGAIN).
        """
        session = GuestExec(self._link, new_exec_id(), 0)
        self._execs[session.id] = session
        try:
            await self._link.request(FrameType.EXEC_START, pack_process(process, terminal), timeout_s, session.id)
        except BaseException:
            del self._execs[session.id]
            raise
        session.started()
        return session

    async def exec_attach(self, exec_id: int, output_position: int | None = None) -> GuestExec:
        """Take up a session that was started through another channel, behind `output_position`, or what was last acknowledged.

        Raises:
            NotFoundError: the guest does not know it.
        """
        session = GuestExec(self._link, exec_id, output_position)
        self._execs[exec_id] = session
        try:
            await session.attach()
        except GuestRefusedError as error:
            del self._execs[exec_id]
            if error.status == errno.ESRCH:
                raise gone_error(self._link.guest, exec_id) from error
            raise
        session.attached()
        return session

    async def exec_close(self, session: GuestExec) -> None:
        """Close a session and forget it."""
        self._execs.pop(session.id, None)
        await session.close()

    def log_position_wanted(self) -> int:
        """For the link: where the guest's log is to go on."""
        return POSITION_OF_GUEST if self._log_position is None else self._log_position

    async def session_began(self, ready: GuestReady) -> None:
        """For the link: a session is there."""
        self._ready = ready
        if self._log_position is None or self._log_position >= ready.log_next:
            self._log_position = ready.log_acked
        for session in list(self._execs.values()):
            session.detached()
            if session.id in ready.exec_ids:
                self._tasks.create_task(self._attach_again(session))
            elif session.is_live:
                session.fail(gone_error(self._link.guest, session.id))

    async def frames_came(self, frames: list[GuestFrame]) -> None:
        """For the link: log, exit and exec frames."""
        before = self._log_position
        for frame in frames:
            match frame.type:
                case FrameType.LOG:
                    await self._take_log(frame)
                case FrameType.EXIT:
                    (self._exit_code,) = unpack(EXIT, frame, self._link.guest)
                    self._exited.set()
                case FrameType.EXEC_OUTPUT | FrameType.EXEC_INPUT_ACK | FrameType.EXEC_EXIT:
                    if (session := self._execs.get(frame.stream)) is not None:
                        session.take(frame)
                case _:
                    raise GuestProtocolError(self._link.guest, f"sent {frame.type.name}", "check its initramfs")
        if self._log_position != before and self._log_position is not None:
            self._link.send(GuestFrame(FrameType.LOG_ACK, seq=self._log_position))

    async def _take_log(self, frame: GuestFrame) -> None:
        (realtime_ns,) = unpack(LOG, frame, self._link.guest)
        position = self._log_position or 0
        if frame.seq <= position:
            return
        if frame.seq != position + 1 or frame.stream not in tuple(LogStream):
            raise GuestProtocolError(
                self._link.guest, f"sent log record {frame.seq} where {position + 1} was due", "check its initramfs"
            )
        await self._on_log(LogRecord(LogStream(frame.stream), frame.seq, realtime_ns, frame.payload[LOG.size :]))
        self._log_position = frame.seq

    async def _attach_again(self, session: GuestExec) -> None:
        try:
            await session.attach()
        except GuestRefusedError:
            session.fail(gone_error(self._link.guest, session.id))
        except (GuestSilentError, GuestProtocolError):
            return  # The next session attaches again.

    async def _measure_offset(self, timeout_s: float) -> ClockCorrection:
        started_s = self._clock.monotonic_s()
        before_s = self._clock.wall_s()
        pong = await self.ping(timeout_s)
        round_trip_ns = round((self._clock.monotonic_s() - started_s) * _NS)
        return ClockCorrection(round(before_s * _NS) + round_trip_ns // 2 - pong.realtime_ns, round_trip_ns)


def random_machine_id() -> str:
    """A new /etc/machine-id."""
    return os.urandom(16).hex()
