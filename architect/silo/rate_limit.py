"""Rate limit: a token bucket that several sending threads share."""

from __future__ import annotations

import threading
import time

BURST_S = 0.05


class RateLimit:
    """Lets `bytes_per_s` through, with bursts of `BURST_S`; 0 means no limit."""

    def __init__(self, bytes_per_s: int) -> None:
        self._rate = bytes_per_s
        self._lock = threading.Lock()
        self._free_at_s = 0.0

    def wait(self, size_bytes: int) -> None:
        """Return when `size_bytes` may be sent."""
        if not self._rate:
            return
        with self._lock:
            now_s = time.monotonic()
            self._free_at_s = max(self._free_at_s, now_s - BURST_S) + size_bytes / self._rate
            delay_s = self._free_at_s - now_s
        if delay_s > 0:
            time.sleep(delay_s)
