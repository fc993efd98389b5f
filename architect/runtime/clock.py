"""Time and randomness as ports, so that a whole fleet runs in one test from one seed.

`Clock.monotonic_s` measures durations, `Clock.wall_s` tells the date, `sleep` waits. Production uses `SystemClock` and
`SystemEntropy`; tests and the simulator bring their own.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Protocol


class Clock(Protocol):
    """Where time comes from."""

    def monotonic_s(self) -> float:
        """Seconds that never go back; the zero is arbitrary."""
        ...

    def wall_s(self) -> float:
        """Seconds since 1970 in UTC."""
        ...

    async def sleep(self, duration_s: float) -> None:
        """Wait that long."""
        ...


class Entropy(Protocol):
    """Where randomness comes from."""

    def random_bytes(self, count: int) -> bytes:
        """`count` random bytes."""
        ...


class SystemClock:
    """The machine's clocks."""

    def monotonic_s(self) -> float:
        """CLOCK_MONOTONIC."""
        return time.monotonic()

    def wall_s(self) -> float:
        """CLOCK_REALTIME."""
        return time.time()

    async def sleep(self, duration_s: float) -> None:
        """asyncio's sleep."""
        await asyncio.sleep(duration_s)


class SystemEntropy:
    """The kernel's generator."""

    def random_bytes(self, count: int) -> bytes:
        """From getrandom(2)."""
        return os.urandom(count)
