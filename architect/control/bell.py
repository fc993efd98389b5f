"""A bell: wakes everybody who waits for "something changed". Waiters look for themselves what did.

A ring between two looks is not lost::

    seen = bell.count
    while not satisfied():
        seen = await bell.wait_rung(seen)
"""

from __future__ import annotations

import asyncio


class Bell:
    """Counts rings. Only one event loop may use it."""

    def __init__(self) -> None:
        self.count = 0
        self._event = asyncio.Event()

    def ring(self) -> None:
        """Something changed."""
        self.count += 1
        self._event.set()
        self._event = asyncio.Event()

    async def wait_rung(self, seen: int, timeout_s: float | None = None) -> int:
        """Wait until it has rung more often than `seen` times, or the time is over; returns the count."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.count == seen:
                    await self._event.wait()
        except TimeoutError:
            pass
        return self.count
