"""Processes: long-lived ones that outlive who started them, told apart for certain.

A pid is used again; a process is its pid *and* its start time. Every signal goes through a pidfd that was opened first and whose
process was checked afterwards, so a recycled pid is never hit. A zombie counts as gone. The processes of a host are found by the
network namespace that any of their threads is in, and by a mark in the environment that they inherited.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import msgspec

from architect.errors import HostError
from architect.runtime.namespaces import NamespaceIdentity, run_in_namespace
from architect.runtime.process_end import has_ended

KILL_WAIT_S = 10.0
_SCAN_PAUSE_S = 0.02
_NO_PROCESS = (errno.ESRCH, errno.EINVAL, errno.ENOENT)  # of pidfd_open(2): nobody has the pid, or another process's thread


class ProcessIdentity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One process: its pid, and its start in clock ticks since boot."""

    pid: int
    start_ticks: int


class SpawnOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a long-lived process starts.

    :param arguments: the command.
    :param folder: its working directory.
    :param log_path: where its output is appended.
    :param namespace: the network namespace that it starts in; None: ours.
    :param environment: added to ours.
    """

    arguments: tuple[str, ...]
    folder: Path
    log_path: Path
    namespace: Path | None = None
    environment: Mapping[str, str] = {}


def read_start(pid: int) -> tuple[int, bool] | None:
    """The start, in ticks, of who has that pid now, and whether its main thread runs; None if nobody has it (or hides: hidepid).

    A process whose main thread has ended is a zombie by its pid, and may have other threads that run on.

    Raises:
        HostError: that cannot be read, which says nothing of the process.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    except OSError as error:
        raise _unknown(pid, error) from error
    return (int(fields[19]), fields[0] not in (b"Z", b"X")) if fields else None


def identify_process(pid: int) -> ProcessIdentity | None:
    """Who has that pid now; None if nobody, or a zombie.

    Raises:
        HostError: as `read_start`.
    """
    start = read_start(pid)
    return ProcessIdentity(pid, start[0]) if start is not None and start[1] else None


def is_alive(process: ProcessIdentity) -> bool:
    """Whether exactly this process still runs."""
    return identify_process(process.pid) == process


def spawn_process(options: SpawnOptions) -> tuple[ProcessIdentity, subprocess.Popen[bytes]]:
    """Start a process in a session of its own; it survives us. Blocks for the length of an execve.

    The caller reaps it through the Popen; `Popen.poll` is enough once `wait_exit` has returned.

    Raises:
        HostError: the command cannot be started.
    """

    def start() -> subprocess.Popen[bytes]:
        descriptor = os.open(options.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            return subprocess.Popen(
                options.arguments, cwd=options.folder, env={**os.environ, **options.environment},
                stdin=subprocess.DEVNULL, stdout=descriptor, stderr=descriptor, start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(descriptor)

    try:
        child = run_in_namespace(options.namespace, start)
    except OSError as error:
        raise HostError(f"process {options.arguments[0]}", str(error), "see that it is installed") from error
    identity = identify_process(child.pid)
    if identity is None:  # it ended at once; an unused start time says so
        identity = ProcessIdentity(child.pid, 0)
    return identity, child


def open_pidfd(process: ProcessIdentity) -> int | None:
    """A pidfd of exactly this process, or None if it is gone. The caller closes it.

    Raises:
        HostError: there is none to be had, which says nothing of the process.
    """
    return pidfd_where(process.pid, lambda: identify_process(process.pid) == process)


def pidfd_where(pid: int, is_wanted: Callable[[], bool]) -> int | None:
    """A pidfd of who has that pid, if it is the one that is wanted; None if it is not, or gone. The caller closes it.

    It is asked after the pidfd is there: from then on the pid cannot become another's behind our back.

    Raises:
        HostError: there is none to be had, which says nothing of the process.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except OSError as error:
        if error.errno in _NO_PROCESS:
            return None
        raise _unknown(pid, error) from error
    try:
        is_it = is_wanted()
    except BaseException:
        os.close(descriptor)
        raise
    if not is_it:
        os.close(descriptor)
        return None
    return descriptor


def _unknown(pid: int, error: OSError) -> HostError:
    return HostError(f"process {pid}", f"cannot be looked at: {error.strerror}", "see the limits of open files and of memory")


def send_signal(process: ProcessIdentity, number: signal.Signals) -> bool:
    """Send a signal to exactly this process; False if it is gone. Never another one."""
    descriptor = open_pidfd(process)
    if descriptor is None:
        return False
    try:
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


async def wait_exit(process: ProcessIdentity) -> None:
    """Wait until it is gone. Cancellation leaves it alone."""
    descriptor = open_pidfd(process)
    if descriptor is None:
        return
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    loop.add_reader(descriptor, gone.set)
    try:
        await gone.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def stop_process(process: ProcessIdentity, grace_s: float) -> None:
    """Ask it to end (SIGTERM), after `grace_s` make it (SIGKILL); returns when it is gone. Idempotent.

    Raises:
        HostError: it does not even die of SIGKILL, or cannot be looked at.
    """
    for number, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, KILL_WAIT_S)):
        if patience_s <= 0:
            continue
        if not send_signal(process, number):
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await wait_exit(process)
                return
    raise HostError(f"process {process.pid}", f"still there {KILL_WAIT_S:.0f} s after SIGKILL", "see what it waits for (ps, wchan)")


def command_line(process: ProcessIdentity) -> list[str]:
    """Its arguments; none if it is gone or a kernel thread."""
    try:
        content = Path(f"/proc/{process.pid}/cmdline").read_bytes()
    except OSError:
        return []
    return [part.decode(errors="replace") for part in content.split(b"\0")[:-1]]


def all_processes() -> list[ProcessIdentity]:
    """Everything that runs now, zombies left out."""
    found = (identify_process(int(entry)) for entry in os.listdir("/proc") if entry.isdigit())
    return [process for process in found if process is not None]


def is_inside(process: ProcessIdentity, namespaces: Collection[NamespaceIdentity]) -> bool:
    """Whether any thread of the process is in one of those network namespaces."""
    tasks = f"/proc/{process.pid}/task"
    with contextlib.suppress(OSError):
        for task in os.listdir(tasks):
            with contextlib.suppress(OSError):
                status = os.stat(f"{tasks}/{task}/ns/net")
                if NamespaceIdentity(status.st_dev, status.st_ino) in namespaces:
                    return True
    return False


def has_mark(process: ProcessIdentity, marks: Collection[str]) -> bool:
    """Whether its environment, as it was at its start, holds a `NAME=VALUE` that is one of these or begins with one that ends
    in a slash."""
    try:
        content = Path(f"/proc/{process.pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    prefixes = tuple(mark for mark in marks if mark.endswith("/"))
    return any(entry in marks or entry.startswith(prefixes) for entry in content)


def network_namespace(process: ProcessIdentity) -> NamespaceIdentity | None:
    """The one that its main thread is in; None if it is gone."""
    try:
        status = os.stat(f"/proc/{process.pid}/ns/net")
    except OSError:
        return None
    return NamespaceIdentity(status.st_dev, status.st_ino)


def processes_where(is_wanted: Callable[[ProcessIdentity], bool]) -> list[ProcessIdentity]:
    """The processes that fit; never ourselves."""
    return [process for process in all_processes() if process.pid != os.getpid() and is_wanted(process)]


def kill_all(is_wanted: Callable[[ProcessIdentity], bool], what: str) -> int:
    """SIGKILL what fits, again and again until nothing does, and return how many were hit. Blocks. Idempotent.

    Raises:
        HostError: something that fits does not die, or new ones keep coming; names how many are left.
    """
    killed: set[ProcessIdentity] = set()
    end_s = time.monotonic() + KILL_WAIT_S
    while found := processes_where(is_wanted):
        if time.monotonic() > end_s:
            raise HostError(what, f"{len(found)} processes do not die ({found[0].pid}, …)", "see what they wait for (ps, wchan)")
        for process in found:
            if send_signal(process, signal.SIGKILL):
                killed.add(process)
        _wait_all(found, _SCAN_PAUSE_S * 10)
    return len(killed)


def _wait_all(processes: list[ProcessIdentity], patience_s: float) -> None:
    end_s = time.monotonic() + patience_s
    for process in processes:
        descriptor = open_pidfd(process)
        if descriptor is not None:
            has_ended(descriptor, max(0.0, end_s - time.monotonic()))
            os.close(descriptor)
    time.sleep(_SCAN_PAUSE_S if any(map(is_alive, processes)) else 0)
