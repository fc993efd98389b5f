"""Rate limit: a token bucket for all that one move sends: its data streams, its demanded pages and its disk.

What must not wait (pages that a running guest demands) is counted, and the rest waits for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

BURST_S = 0.05


class RateLimit:
    """Lets `bytes_per_s` through, with bursts of `BURST_S`; 0 means no limit. For several threads.

    :param now, sleep: the clock.
    """

    def __init__(
        self, bytes_per_s: int, now: Callable[[], float] = time.monotonic, sleep: Callable[[float], object] | None = None
    ) -> None:
        self._rate = bytes_per_s
        self._now = now
        self._sleep = sleep
        self._lock = threading.Lock()
        self._free_at_s = float("-inf")
        self._changed = threading.Event()

    def change(self, bytes_per_s: int) -> None:
        """Let so much through from now on; what was sent too early under the limit before is forgiven. Who waits goes on."""
        with self._lock:
            self._rate = bytes_per_s
            self._free_at_s = float("-inf")
            self._changed.set()
            self._changed = threading.Event()

    def wait(self, size_bytes: int) -> None:
        """Return when `size_bytes` may be sent. Who comes first is served first."""
        changed = self._changed
        delay_s = self.count(size_bytes)
        if delay_s > 0:
            (self._sleep or changed.wait)(delay_s)

    def count(self, size_bytes: int) -> float:
        """Say that `size_bytes` are sent now; returns how many seconds too early that is."""
        with self._lock:
            if not self._rate:
                return 0.0
            now_s = self._now()
            early_s = max(self._free_at_s, now_s - BURST_S) - now_s
            self._free_at_s = now_s + early_s + size_bytes / self._rate
            return self._free_at_s - now_s
