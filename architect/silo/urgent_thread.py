"""Urgent thread: a thread that a guest waits for runs before all normal work of the host (SCHED_RR), for it sleeps nearly always.

Measured on 2 loaded cores (see `docs/protocols/memory-process.md`).
"""

from __future__ import annotations

import contextlib
import os

PRIORITY = 1


def make_urgent() -> None:
    """Raise the calling thread, if this process may."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(PRIORITY))
