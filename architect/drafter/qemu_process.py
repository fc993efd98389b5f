"""One QEMU process: started in its jail, recognised again after the agent's death, ended, reaped.

The jail: an unprivileged uid with no groups but KVM's, a session of its own, no file but inherited descriptors and the world's,
QEMU's own seccomp filter, umask 077, no core dump. The process is nobody's dependant: it gets no signal when the agent dies.

A process is recognised by (boot id, pid, start time), so that a recycled pid is never taken for it, and held by a pidfd.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import resource
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec

from architect.errors import HostError, NotFoundError
from architect.runtime.boot import boot_id
from architect.runtime.process_end import exit_status, has_ended
from architect.runtime.processes import identify_process, pidfd_where, read_start

OOM_SCORE = 300  # the kernel takes a VM before it takes the agent, which is needed to save the others
NICE = 5
RUN_DIR_VARIABLE = "ARCHITECT_RUN_DIR"
UFFD_DEVICE = Path("/dev/userfaultfd")
# QEMU says these of a NIC without a network, of device state without its optional description, and after what it really has to say.
HARMLESS = ("has no peer", "Expected vmdescription section", "Use -machine help")
UFFD_NUMBER = 900  # where native/uffd_shim.c leaves the userfaultfd


class QemuIdentity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A QEMU, as its record names it over boots; `start_ticks` is field 22 of proc_pid_stat(5).

    No `runtime.processes.ProcessIdentity`, to which a zombie is gone: while threads of a QEMU run, they may write to its disk.
    """

    pid: int
    start_ticks: int
    boot_id: str


class Jail(msgspec.Struct, frozen=True):
    """Who the process runs as. `shim` is preloaded and makes the userfaultfd; None leaves the VM without dirty tracking."""

    uid: int
    shim: Path | None
    kvm: bool = False


class QemuProcess:
    """A running (or ended) QEMU, held by a pidfd."""

    def __init__(self, identity: QemuIdentity, pidfd: int, child: subprocess.Popen[bytes] | None) -> None:
        self.identity = identity
        self._pidfd = pidfd
        self._child = child

    @property
    def pid(self) -> int:
        """The process id; only meaningful while `is_running`."""
        return self.identity.pid

    @property
    def pidfd(self) -> int:
        """The descriptor that stands for the process; the memory process takes QEMU's userfaultfd through one of its own."""
        return self._pidfd

    @property
    def has_uffd(self) -> bool:
        """Whether the shim has made a userfaultfd in the process."""
        return os.path.lexists(f"/proc/{self.pid}/fd/{UFFD_NUMBER}")

    @property
    def is_running(self) -> bool:
        """Whether the process has not ended."""
        return self._pidfd >= 0 and not has_ended(self._pidfd)

    @property
    def is_ending(self) -> bool:
        """Whether its main thread has ended, which alone obeys the monitor; other threads of it may take a moment longer."""
        return identify_process(self.pid) is None

    async def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait until the process has ended, and reap it if it is our child. Returns its `exit_status`.

        Raises:
            TimeoutError: it still runs.
        """
        if self.is_running:
            loop = asyncio.get_running_loop()
            ended = asyncio.Event()
            watched = os.dup(self._pidfd)  # several may wait, and a loop watches a descriptor once
            loop.add_reader(watched, ended.set)
            try:
                async with asyncio.timeout(timeout_s):
                    await ended.wait()
            finally:
                loop.remove_reader(watched)
                os.close(watched)
        return self.exit_status

    @property
    def exit_status(self) -> int | None:
        """How it has ended, as `Popen.returncode`; None: it has not, or that is not known. Reaps it if it is our child."""
        if self._child is not None:
            return self._child.wait() if self._child.returncode is None and not self.is_running else self._child.returncode
        return exit_status(self._pidfd) if self._pidfd >= 0 else None

    def kill(self) -> None:
        """Send SIGKILL. Idempotent; never hits another process."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Let go of the process, without ending it. Idempotent."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def calm(self) -> None:
        """Put the guest's CPUs behind everything else of ours for CPU time, and the process before it for the OOM killer.

        QEMU's main thread keeps its priority: it answers the monitor, and each answer is part of a pause.
        """
        with contextlib.suppress(OSError):  # it may just have ended; whoever talks to it next finds out
            Path(f"/proc/{self.pid}/oom_score_adj").write_text(str(OOM_SCORE))
            for thread in Path(f"/proc/{self.pid}/task").iterdir():
                if (thread / "comm").read_text().startswith("CPU "):
                    os.setpriority(os.PRIO_PROCESS, int(thread.name), NICE)


def spawn(command: Sequence[str], jail: Jail, inherited: Sequence[int], run_dir: Path, log: Path) -> QemuProcess:
    """Start QEMU with these descriptors (same numbers there) and the log file as its stdout and stderr.

    `run_dir` is only noted in its environment, for `find_unrecorded`.

    Raises:
        HostError: the program is missing or the host refused to start it.
    """
    assert UFFD_NUMBER not in inherited
    environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", RUN_DIR_VARIABLE: str(run_dir.absolute())}
    with contextlib.ExitStack() as opened:
        log_descriptor = _open(opened, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, "see the folder's rights")
        numbers = list(inherited)
        if jail.shim is not None:
            device = _open(opened, UFFD_DEVICE, os.O_RDWR, "use a kernel with userfaultfd, and run as root")
            # By descriptor, as everything else: its path may lie in a folder that the jail's user cannot enter (a clone in /root).
            shim = _open(opened, jail.shim, os.O_RDONLY, "build it: `make setup`")
            environment |= {"LD_PRELOAD": f"/proc/self/fd/{shim}", "ARCHITECT_UFFD_DEVICE": str(device)}
            numbers += [device, shim]
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log_descriptor,
                stderr=log_descriptor,
                cwd="/",
                env=environment,
                pass_fds=numbers,
                start_new_session=True,
                user=jail.uid,
                group=jail.uid,
                extra_groups=_kvm_groups() if jail.kvm else [],
                umask=0o077,
            )
        except OSError as error:
            raise HostError(f"program {command[0]}", str(error), "install qemu-system-x86 and run as root") from error
    pidfd = os.pidfd_open(child.pid)  # our own child, not reaped yet: this cannot be another process
    with contextlib.suppress(OSError):
        resource.prlimit(child.pid, resource.RLIMIT_CORE, (0, 0))
    return QemuProcess(identity_of(child.pid), pidfd, child)


def _open(opened: contextlib.ExitStack, path: str | Path, flags: int, next_step: str) -> int:
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostError(str(path), str(error.strerror), next_step) from error
    opened.callback(os.close, descriptor)
    return descriptor


def identity_of(pid: int) -> QemuIdentity:
    """Who a live process is.

    Raises:
        ProcessLookupError: there is no such process.
        HostError: it cannot be looked at.
    """
    if (start := read_start(pid)) is None:
        raise ProcessLookupError(pid)
    return QemuIdentity(pid, start[0], boot_id())


def find_process(identity: QemuIdentity) -> QemuProcess:
    """Take hold of a process that an earlier agent started.

    Raises:
        NotFoundError: it has ended, or the host was booted since.
        HostError: it cannot be looked at; it may run.
    """
    pidfd = pidfd_where(identity.pid, lambda: _is_still(identity))
    if pidfd is None:
        raise NotFoundError(f"QEMU process {identity.pid}", "it has ended", "start the VM again")
    return QemuProcess(identity, pidfd, None)


def _is_still(identity: QemuIdentity) -> bool:
    try:
        return identity_of(identity.pid) == identity
    except ProcessLookupError:
        return False


def find_unrecorded(run_dir: Path) -> QemuProcess | None:
    """The process that `spawn` started for `run_dir`, found by its environment (some milliseconds; the record is the usual way).

    Raises:
        HostError: the processes cannot be looked through; it may be there.
    """
    note = f"{RUN_DIR_VARIABLE}={run_dir.absolute()}".encode()
    try:
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError, NotFoundError):
                    if note in (folder / "environ").read_bytes().split(b"\0"):
                        return find_process(identity_of(int(folder.name)))
    except OSError as error:
        raise HostError("/proc", f"cannot be looked through: {error.strerror}", "see the limit of open files") from error
    return None


def last_line(log: Path) -> str:
    """The last thing that QEMU said, for an error message; what it says in good health is left out."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    said = (line.strip() for line in reversed(lines))
    return next((line for line in said if line and not any(phrase in line for phrase in HARMLESS)), "")


def _kvm_groups() -> list[int]:
    try:
        return [grp.getgrnam("kvm").gr_gid]
    except KeyError:
        return []
