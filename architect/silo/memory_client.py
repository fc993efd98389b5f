"""Memory client: the agent's view of one VM's memory process.

    memory = await MemoryProcess.spawn(MemoryOptions(run_dir, tls_dir, memory_bytes), server)
    descriptor = memory.memfd()                      # for QEMU: mem-path=/proc/self/fd/N, inherited
    await memory.attach(qemu_pid, MemoryRole.FRESH)

`close` ends the connection, not the process; `shutdown` ends the process. Each call raises what the process reported, or
UnavailableError / OutcomeUnknownError when it is gone or does not answer in time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import Any

import msgspec

from architect.errors import ArchitectError, HostError, UnavailableError
from architect.runtime.fork_server import ForkedProcess, ForkServer
from architect.runtime.process_end import ending, exit_status, has_ended, known_exit_status
from architect.runtime.rpc import Channel, open_channel
from architect.silo import memory_messages as m
from architect.silo.memory_role import MemoryRole
from architect.silo.memory_state import PID_NAME, SOCKET_NAME
from architect.wire.framing import PROTOCOL_VERSION

SHORT_TIMEOUT_S = 15.0
BULK_TIMEOUT_S = 86_400.0  # who asks has its own bound, by the bandwidth limit
CUT_TIMEOUT_S = 60.0
START_TIMEOUT_S = 20.0
_POLL_S = 0.002


class MemoryStartError(HostError):
    """The memory process did not start. `how`: how it ended, in words to follow its name; "" if it did not."""

    def __init__(self, thing: str, cause: str, next_step: str, how: str = "") -> None:
        super().__init__(thing, cause, next_step)
        self.how = how


class MemoryOptions(msgspec.Struct, frozen=True):
    """How to start one. `run_dir` is the VM's, on a tmpfs."""

    run_dir: Path
    tls_dir: Path
    memory_bytes: int
    track_interval_s: float = 5.0


def memory_server(label: str, prefix: tuple[str, ...] = ()) -> ForkServer:
    """What forks memory processes. Parameters as of `ForkServer`."""
    return ForkServer("architect.silo.memory_main", label, prefix)


class MemoryProcess:
    """One VM's memory process, as its agent has it. Made by `spawn` or `reattach`; owns one task until `close`."""

    def __init__(self, channel: Channel, pid: int) -> None:
        self._channel = channel
        self._task = asyncio.create_task(channel.run())
        self._status: m.MemoryStatus | None = None
        self._pidfd = -1
        self.pid = pid

    @classmethod
    async def spawn(cls, options: MemoryOptions, server: ForkServer) -> MemoryProcess:
        """Start a memory process, in a session of its own; it outlives this one. In the run directory of one that was killed it
        goes on with its QEMU.

        Raises:
            MemoryStartError: it ended at once; how it did, with its last words, is the cause.
        """
        options.run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        (options.run_dir / PID_NAME).unlink(missing_ok=True)
        arguments = [
            "--run-dir", str(options.run_dir), "--tls-dir", str(options.tls_dir),
            "--memory-bytes", str(options.memory_bytes), "--track-interval", str(options.track_interval_s),
        ]  # fmt: skip
        log_path = options.run_dir / "memory.log"
        with log_path.open("ab") as log:
            process = await server.fork(arguments, log.fileno())
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while not (options.run_dir / PID_NAME).exists():
                    if process.has_ended():
                        raise await _ended_at_once(process, log_path)
                    await asyncio.sleep(_POLL_S)
            return await cls.reattach(options.run_dir)
        except TimeoutError as error:
            process.kill()
            raise MemoryStartError("memory process", "it did not start in time", f"see {log_path}") from error
        except UnavailableError as error:
            if process.has_ended():
                raise await _ended_at_once(process, log_path) from error
            process.kill()
            raise
        except BaseException:
            process.kill()
            raise
        finally:
            process.close()

    @classmethod
    async def reattach(cls, run_dir: Path) -> MemoryProcess:
        """Connect to the memory process that runs in `run_dir`.

        Raises:
            UnavailableError: none runs there.
        """
        channel = await open_channel(str(run_dir / SOCKET_NAME), m.MemoryMessage, None, f"memory process in {run_dir}")
        process = cls(channel, 0)
        try:
            status = await process.status()
            if status.version != PROTOCOL_VERSION:
                raise UnavailableError(channel.peer, f"it is of version {status.version}", "move the VM to another host")
        except BaseException:
            await process.close()
            raise
        process.pid = status.pid
        process._status = status
        with contextlib.suppress(ProcessLookupError):  # it has ended since; the connection will say so
            process._pidfd = os.pidfd_open(status.pid)
        return process

    @property
    def is_closed(self) -> bool:
        """Whether the connection has ended, with the process or by `close`."""
        return self._channel.is_closed

    def how_it_ended(self) -> str:
        """The process's end in words, to follow its name; "" while it lives, and after `close`."""
        if self._pidfd < 0 or not has_ended(self._pidfd):
            return ""
        return ending(exit_status(self._pidfd))

    async def wait_ending(self) -> str:
        """As `how_it_ended`, of one that may just be ending: its connection ends first, its parent reaps it last."""
        if self._pidfd >= 0 and (self.is_closed or has_ended(self._pidfd)):
            await known_exit_status(self._pidfd)
        return self.how_it_ended()

    async def wait_closed(self) -> None:
        """Until the connection has ended, with the process or by `close`."""
        await asyncio.wait([self._task])

    def memfd(self) -> int:
        """A new descriptor of the RAM file; the caller closes it.

        Raises:
            MemoryStartError: the process is gone.
        """
        assert self._status is not None
        try:
            return os.open(f"/proc/{self.pid}/fd/{self._status.memory_fd}", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise MemoryStartError(f"memory process {self.pid}", "is gone", "start it again") from error

    def resident_bytes(self) -> int:
        """How much of the RAM file exists; 0 if the process is gone."""
        assert self._status is not None
        try:
            return os.stat(f"/proc/{self.pid}/fd/{self._status.memory_fd}").st_blocks * 512
        except OSError:
            return 0

    async def attach(self, qemu_pid: int, role: MemoryRole) -> None:
        """Watch QEMU's memory: FRESH for a VM that starts here, INCOMING for one that moves here. Before the guest runs."""
        await self._ask(m.Attach(qemu_pid, role), SHORT_TIMEOUT_S)

    async def status(self, *, scan: bool = False) -> m.MemoryStatus:
        """How it stands; with `scan` the pages that were written until now count as left, too."""
        answer: m.MemoryStatus = await self._ask(m.GetStatus(scan), SHORT_TIMEOUT_S)
        return answer

    async def open_source(self, options: m.SourceOptions, *, resume: bool = False) -> None:
        """Connect to the target of a move. `resume`: its post-copy went on before this process was restarted; serve it next."""
        await self._ask(m.OpenSource(options, resume), SHORT_TIMEOUT_S + options.streams)

    async def bulk(self, deadline_s: float | None = None) -> m.RoundStats:
        """Send all pages once, cold ones first; stops early after `deadline_s` or when cancelled, and nothing is lost by that."""
        answer: m.RoundStats = await self._ask(m.Bulk(deadline_s), BULK_TIMEOUT_S)
        return answer

    async def round(self, deadline_s: float | None = None) -> m.RoundStats:
        """Send what was written since. As `bulk`."""
        answer: m.RoundStats = await self._ask(m.Round(deadline_s), BULK_TIMEOUT_S)
        return answer

    async def stop_round(self) -> None:
        """Make the `bulk` or `round` that runs end early; it returns what it has done. Without one nothing happens."""
        await self._ask(m.StopRound(), SHORT_TIMEOUT_S)

    async def set_bandwidth(self, bytes_per_s: int) -> None:
        """The move that leaves from here sends no more than this from now on; 0 is no limit."""
        await self._ask(m.SetBandwidth(bytes_per_s), SHORT_TIMEOUT_S)

    async def announce(self) -> None:
        """Tell the target what it would lack now: shortens the pause of a post-copy cut."""
        await self._ask(m.Announce(), CUT_TIMEOUT_S)

    async def cut(self, *, postcopy: bool) -> m.Cut:
        """The guest is paused: send the rest (its root is in the answer), or the list of the rest (postcopy; demands are answered
        from now on)."""
        answer: m.Cut = await self._ask(m.MakeCut(postcopy), CUT_TIMEOUT_S)
        return answer

    async def start_serving(self) -> None:
        """Begin what `serve_until_done` waits for. Idempotent."""
        await self._ask(m.StartServing(), SHORT_TIMEOUT_S)

    async def serve_until_done(self, timeout_s: float = BULK_TIMEOUT_S) -> m.Served:
        """After a post-copy cut: push the rest until the target has proved its root. Goes on when cancelled; may be asked again."""
        answer: m.Served = await self._ask(m.Serve(), timeout_s)
        return answer

    async def abort_source(self) -> None:
        """Forget the move; the VM stays here. Idempotent."""
        await self._ask(m.EndSource(), SHORT_TIMEOUT_S)

    async def end_source(self) -> None:
        """Forget the move, after its end. Idempotent."""
        await self._ask(m.EndSource(), SHORT_TIMEOUT_S)

    async def open_target(self, session: str, address: str) -> m.TargetEndpoint:
        """Take a move with this secret at `address`; attached as INCOMING before. The memory becomes zeros."""
        answer: m.TargetEndpoint = await self._ask(m.OpenTarget(session, address), SHORT_TIMEOUT_S)
        return answer

    async def apply_cut(self, root: str, *, postcopy: bool, timeout_s: float = 10.0) -> m.Applied:
        """Return when the memory of the cut is in place: verified against `root`, or (postcopy) with the missing pages known.

        Raises:
            HandoverError: it is not; device state must not be loaded.
        """
        answer: m.Applied = await self._ask(m.ApplyCut(root, postcopy, timeout_s), timeout_s + 5)
        return answer

    async def wait_all_present(self, timeout_s: float = BULK_TIMEOUT_S) -> m.Applied:
        """Return when all pages have arrived after a post-copy cut, with their proved root.

        Raises:
            LostError: the source is gone, or the time is over.
        """
        answer: m.Applied = await self._ask(m.WaitPresent(timeout_s), timeout_s + 5)
        return answer

    async def abort_target(self) -> None:
        """Forget the move; after its end, too. Idempotent."""
        await self._ask(m.AbortTarget(), SHORT_TIMEOUT_S)

    async def tunnel_listen(self, name: str, path: str) -> None:
        """Carry connections to the unix socket `path` (made here) to the peer's `tunnel_connect` of this name. After `open_source`
        or `open_target`; the peer's end is opened first."""
        await self._ask(m.TunnelListen(name, path), SHORT_TIMEOUT_S)

    async def tunnel_connect(self, name: str, path: str) -> None:
        """What the peer carries here under this name goes to the unix socket `path`. As `tunnel_listen`."""
        await self._ask(m.TunnelConnect(name, path), SHORT_TIMEOUT_S)

    async def tunnel_serve(self, name: str, path: str) -> None:
        """What the peer reads here under this name, by NBD, is the file `path`, which nobody may write. As `tunnel_listen`."""
        await self._ask(m.TunnelServe(name, path), SHORT_TIMEOUT_S)

    async def tunnel_close(self, name: str) -> m.TunnelBytes:
        """End the tunnel with its connections; returns what it carried. Idempotent. Tunnels outlive the move's own ends."""
        answer: m.TunnelBytes = await self._ask(m.TunnelClose(name), SHORT_TIMEOUT_S)
        return answer

    async def full_hash(self, timeout_s: float = BULK_TIMEOUT_S) -> str:
        """The root of the memory as it is, read anew. The guest should be paused."""
        answer: m.Hashed = await self._ask(m.FullHash(), timeout_s)
        return answer.root

    async def shutdown(self) -> None:
        """End the process, and the connection. Its QEMU must be gone, or was never registered for missing pages."""
        with contextlib.suppress(UnavailableError):
            await self._ask(m.Shutdown(), SHORT_TIMEOUT_S)
        await self.close()

    async def close(self) -> None:
        """End the connection; the process goes on. Idempotent."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        self._channel.close()
        with contextlib.suppress(ArchitectError):
            await self._task

    async def _ask(self, message: Any, timeout_s: float) -> Any:
        return await self._channel.call(message, timeout_s=timeout_s)


async def _ended_at_once(process: ForkedProcess, log_path: Path) -> MemoryStartError:
    lines = log_path.read_text(errors="replace").strip().splitlines()
    how = ending(await process.exit_status(), lines[-1] if lines else "")
    return MemoryStartError("memory process", how, f"see {log_path}", how)
