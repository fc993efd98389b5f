"""Fault latency: how long guests waited for pages; counted in buckets of a twelfth of an octave."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from architect.silo.memory_messages import FaultReport

_BUCKETS_PER_OCTAVE = 12
_BUCKETS = 32 * _BUCKETS_PER_OCTAVE


class FaultLatency:
    """A histogram of durations from 1 µs to an hour, exact to 6 %."""

    def __init__(self) -> None:
        self._counts: npt.NDArray[np.int64] = np.zeros(_BUCKETS, np.int64)
        self.count = 0

    def add(self, duration_s: float) -> None:
        """Count one."""
        bucket = int(math.log2(max(duration_s * 1e6, 1.0)) * _BUCKETS_PER_OCTAVE)
        self._counts[min(bucket, _BUCKETS - 1)] += 1
        self.count += 1

    def quantile_us(self, fraction: float) -> float:
        """The duration that `fraction` of all did not exceed, in µs; 0 if there is none."""
        if self.count == 0:
            return 0.0
        bucket = int(np.searchsorted(np.cumsum(self._counts), fraction * self.count))
        return float(2 ** ((bucket + 0.5) / _BUCKETS_PER_OCTAVE))

    def report(self) -> FaultReport:
        """As the agent sees it."""
        return FaultReport(self.count, self.quantile_us(0.5), self.quantile_us(0.99))
