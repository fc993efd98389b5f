"""Drift: whether a figure that was sampled many times in a row rises, as a leak does, or only varies.

A series drifts when both hold:

* its last window's median is above its first window's by more than a slack that is stated for the figure, and
* it rises throughout: the Mann-Kendall trend test (one-sided, ties accounted for) rejects "no trend" at 1 %.

The first alone would take one slow patch at the end for a leak; the second alone would find the growth of a page in 100 samples
worth a word. Sources: Mann (1945), Kendall (1975); the variance with ties is Kendall's. Pure.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence

import msgspec

Z_MIN = 2.326
"""One-sided 1 %."""


class Slack(msgspec.Struct, frozen=True):
    """How much a figure may rise from the first window to the last: the larger of the two counts."""

    absolute: float = 0.0
    share: float = 0.0

    def of(self, value: float) -> float:
        """The slack of a figure that began at `value`."""
        return max(self.absolute, self.share * abs(value))


class Drift(msgspec.Struct, frozen=True):
    """What a series did: medians of its first and last window, and the test's statistic."""

    name: str
    first: float
    last: float
    z: float
    drifts: bool


def drift_of(name: str, series: Sequence[float], window: int, slack: Slack) -> Drift:
    """Judge a series of at least two windows."""
    assert window >= 1 and len(series) >= 2 * window, (name, len(series), window)
    first, last = statistics.median(series[:window]), statistics.median(series[-window:])
    z = mann_kendall_z(series)
    return Drift(name, first, last, round(z, 2), last - first > slack.of(first) and z > Z_MIN)


def mann_kendall_z(series: Sequence[float]) -> float:
    """The standardised statistic of the trend test: above 0 the series rises. 0 for a constant one."""
    count = len(series)
    score = sum((later > earlier) - (later < earlier) for at, earlier in enumerate(series) for later in series[at + 1 :])
    ties = sum(size * (size - 1) * (2 * size + 5) for size in Counter(series).values())
    variance = (count * (count - 1) * (2 * count + 5) - ties) / 18
    return 0.0 if variance <= 0 or score == 0 else (score - math.copysign(1, score)) / math.sqrt(variance)
