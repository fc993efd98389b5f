"""Ctrl-C while something stands: it cancels the work once, and the clean-up that follows runs to its end.

The first SIGINT (or SIGTERM) cancels the task; each later one only says what is being waited for. asyncio's own way would raise
KeyboardInterrupt in the middle of the clean-up at the second.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def interruptible(say: Callable[[str], None], waits_for: str) -> Iterator[None]:
    """For the length of the block the first signal cancels the current task, and later ones say `waits_for`."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    is_first = True

    def interrupt() -> None:
        nonlocal is_first
        if is_first:
            is_first = False
            say("interrupted")
            task.cancel()
        else:
            say(waits_for)

    for number in SIGNALS:
        loop.add_signal_handler(number, interrupt)
    try:
        yield
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)


async def to_its_end(work: Coroutine[Any, Any, object]) -> None:
    """Wait for `work`; who is cancelled meanwhile is so after it.

    Raises: what `work` raises.
    """
    running = asyncio.ensure_future(work)
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        await running
        raise
