"""Whether a process has ended, and how: its status by a pidfd, also where it never was our child, and in words for who is told.

Source: linux/pidfd.h, PIDFD_GET_INFO with PIDFD_INFO_EXIT (Linux 6.15): known from the moment its parent has reaped it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import select
import signal
import struct

REAPED_WITHIN_S = 0.5
_POLL_S = 0.002
_INFO_BYTES = 64
_GET_INFO = 0xC000FF0B | _INFO_BYTES << 16
_INFO_EXIT = 1 << 3
_MASK, _STATUS = struct.Struct("=Q"), struct.Struct("=60xi")


def has_ended(pidfd: int, patience_s: float = 0.0) -> bool:
    """Whether the process is gone with all its threads; waits for that as long as told, and blocks. A zombie is gone."""
    poll = select.poll()  # select(2) refuses descriptors from 1024 on, and a host of many VMs has them
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(patience_s * 1000))


def exit_status(pidfd: int) -> int | None:
    """As `subprocess.Popen.returncode` has it: negative for a signal. None: not known (not reaped yet, or Linux before 6.15)."""
    info = bytearray(_INFO_BYTES)
    _MASK.pack_into(info, 0, _INFO_EXIT)
    with contextlib.suppress(OSError):
        fcntl.ioctl(pidfd, _GET_INFO, info)
        if _MASK.unpack_from(info)[0] & _INFO_EXIT:
            return os.waitstatus_to_exitcode(_STATUS.unpack_from(info)[0])
    return None


async def known_exit_status(pidfd: int) -> int | None:
    """As `exit_status`, of a process that has ended or is about to: waits for its parent to reap it, REAPED_WITHIN_S at most."""
    for _ in range(int(REAPED_WITHIN_S / _POLL_S)):
        if (status := exit_status(pidfd)) is not None:
            return status
        await asyncio.sleep(_POLL_S)
    return None


def ending(status: int | None, words: str = "") -> str:
    """The end in words, to follow the process's name. `words`, its last ones, are told if it ended by itself, and not well."""
    if status is None or status > 0:
        how = "ended" if status is None else f"ended with exit status {status}"
        return f"{how} ({words})" if words else how
    if status == 0:
        return "ended with exit status 0"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        return f"was killed by signal {-status}"
    return f"was killed by signal {-status} ({name})"
