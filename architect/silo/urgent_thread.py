"""Urgent thread: what a guest waits for runs before all normal work of the host (SCHED_RR): faults, demands, the pause of a cut.

Such threads sleep nearly always. Measured on 2 loaded cores in `docs/protocols/memory-process.md`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

PRIORITY = 1


def make_urgent() -> None:
    """Raise the calling thread, if this process may."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(PRIORITY))


def make_normal() -> None:
    """Make the calling thread like all others."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_OTHER | os.SCHED_RESET_ON_FORK, os.sched_param(0))


@contextlib.contextmanager
def urgent() -> Iterator[None]:
    """The calling thread is urgent inside."""
    make_urgent()
    try:
        yield
    finally:
        make_normal()
