"""Cancellation that is neither lost nor too early.

An error of what is cleaned up takes the place of the `CancelledError` that began the clean-up; and a thread knows nothing of the
cancellation of who waits for it, so it goes on beside the clean-up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def check_cancelled() -> None:
    """Go on with the cancellation of the current task, if there is one: where an error that hid it has been caught.

    Raises:
        CancelledError: somebody has cancelled the task, and nothing has taken that back.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def run_in_thread_to_end(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """As `asyncio.to_thread`, but a cancellation waits for its end: for what writes where the caller then cleans up."""
    working = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait({working})
        raise
