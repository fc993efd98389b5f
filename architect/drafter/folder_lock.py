"""A lock on a folder between processes: flock(2) on a file in it, which goes with its holder, however that ends."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from architect.errors import UnavailableError

POLL_S = 0.1


@asynccontextmanager
async def folder_lock(folder: Path, timeout_s: float = 600.0) -> AsyncIterator[None]:
    """Hold the folder's lock; it is free again when the block is left.

    Raises:
        UnavailableError: somebody else held it for all of `timeout_s`.
    """
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        async with asyncio.timeout(timeout_s):
            while not _try_lock(descriptor):  # noqa: ASYNC110  (the other process sets no event of ours)
                await asyncio.sleep(POLL_S)
        yield
    except TimeoutError as error:
        raise UnavailableError(str(folder), f"locked by another process for {timeout_s:.0f} s", "wait for it or end it") from error
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
