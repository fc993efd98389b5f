"""Cancellation that is not lost: an error of what is cleaned up takes the place of the `CancelledError` that began the clean-up."""

from __future__ import annotations

import asyncio


def check_cancelled() -> None:
    """Go on with the cancellation of the current task, if there is one: where an error that hid it has been caught.

    Raises:
        CancelledError: somebody has cancelled the task, and nothing has taken that back.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
