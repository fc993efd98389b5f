"""What a test run leaves behind: found for certain, because the run lives in a mount namespace of its own.

`isolate` gives the run private, empty `/run/netns` and `/sys/fs/bpf`. So the named namespaces and pins in there are this run's and
nobody else's, parallel runs do not meet, and every process in that mount namespace was started by this run. So does each worker of
a run; should it be interrupted, the run's main process looks in their places, too.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from architect.errors import HostError
from architect.runtime.namespaces import NAMES, delete_namespace
from architect.runtime.processes import ProcessIdentity, command_line, kill_all, processes_where

PINS = Path("/sys/fs/bpf")
SETTLE_S = 3.0
_CLONE_NEWNS = 0x20000
_MS_REC, _MS_PRIVATE = 0x4000, 1 << 18
_libc = ctypes.CDLL(None, use_errno=True)


def isolate() -> bool:
    """Move this process into a mount namespace of its own; False where that is not possible. Threads must not run yet."""
    if os.geteuid() != 0 or _libc.unshare(_CLONE_NEWNS) != 0:
        return False
    NAMES.mkdir(parents=True, exist_ok=True)
    is_private = int(_libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)) == 0
    if is_private:
        _libc.mount(b"tmpfs", bytes(NAMES), b"tmpfs", 0, b"mode=755")
        _libc.mount(b"bpf", bytes(PINS), b"bpf", 0, None)
    return is_private


class Place:
    """A mount namespace, held, so that its number is nobody else's."""

    def __init__(self, pid: int) -> None:
        self._descriptor = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        self.inode = os.fstat(self._descriptor).st_ino


def places_of_children() -> list[Place]:
    """Where our children live that have places of their own: the workers of a run, and with each all that it has started."""
    ours = os.stat("/proc/self/ns/mnt").st_ino
    places = []
    for task in Path("/proc/self/task").iterdir():
        for pid in (task / "children").read_text().split():
            with contextlib.suppress(OSError):  # it ends just now
                places.append(Place(int(pid)))
    return [place for place in places if place.inode != ours]


def find(places: Sequence[Place] = ()) -> list[str]:
    """What is left now, here and in those places, a line each; waits a little for processes that are ending."""
    end_s = time.monotonic() + SETTLE_S
    while (processes := processes_where(_is_of(places))) and time.monotonic() < end_s:
        time.sleep(0.05)
    lines = [f"process {process.pid}: {' '.join(command_line(process))[:150]}" for process in processes]
    lines += [f"network namespace {path.name}" for path in sorted(NAMES.iterdir())]
    lines += [f"pin {path}" for path in sorted(PINS.glob("*/**/*")) if not path.is_dir()]
    return lines


def remove(places: Sequence[Place] = ()) -> None:
    """Take away what is left, so that it burdens nobody. Names and pins of the places vanish with their last process.

    A supervisor that is hit after its agent has started another by then: it is looked again until there is nothing.
    """
    with contextlib.suppress(HostError):  # what does not die has been told of by `find`
        kill_all(_is_of(places), "the run")
    for path in list(NAMES.iterdir()):
        delete_namespace(path.name)


def _is_of(places: Sequence[Place]) -> Callable[[ProcessIdentity], bool]:
    """Whether a process lives here or in those places."""
    inodes = {os.stat("/proc/self/ns/mnt").st_ino, *(place.inode for place in places)}

    def is_ours(process: ProcessIdentity) -> bool:
        try:
            inode = os.stat(f"/proc/{process.pid}/ns/mnt").st_ino
        except OSError:
            return False
        return inode in inodes and not any("multiprocessing" in part for part in command_line(process))

    return is_ours
