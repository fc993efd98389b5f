"""The run directory of a memory process (a tmpfs): how its files are called, and what it keeps for the one that takes over."""

from __future__ import annotations

from pathlib import Path

import msgspec

from architect.runtime.whole_file import write_whole
from architect.silo.memory_role import MemoryRole

SOCKET_NAME = "memory.sock"
PID_NAME = "memory.pid"
STATE_FILE = "memory-state.json"


class IncomingMove(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A move after its cut. `root`: all of the memory is here, and this is its root; "": pages are still to come."""

    session: str
    address: str
    port: int
    root: str = ""


class KeptState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The QEMU that is watched (`started`: its start time, because process numbers come again), and what goes on."""

    qemu_pid: int
    started: int
    role: MemoryRole
    incoming: IncomingMove | None = None


_KEPT_STATE_DECODER = msgspec.json.Decoder(KeptState)


def keep_state(folder: Path, state: KeptState) -> None:
    """Keep that in the place of what was kept before.

    Raises:
        OSError: it cannot be written; what was kept before still is.
    """
    write_whole(folder / STATE_FILE, msgspec.json.encode(state))


def kept_state(folder: Path) -> KeptState | None:
    """What a process before this one kept, if its QEMU still runs."""
    try:
        state = _KEPT_STATE_DECODER.decode((folder / STATE_FILE).read_bytes())
    except (OSError, msgspec.DecodeError):
        return None
    return state if start_time(state.qemu_pid) == state.started else None


def start_time(pid: int) -> int:
    """When a process started, in the kernel's ticks; 0 if there is none (a dead one that is not reaped counts as none)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])
