"""How fast the move's link is, from what it has carried so far: a careful, a likely and a hopeful rate. Pure.

A sample is what was acknowledged in a short window while there was something to send; memory and disk share the link, so both
count. A move's rate varies (other moves, other tenants, slow start), so decisions that must not fail use `low` and those that give
up use `high`.
"""

from __future__ import annotations

import math

import msgspec

SAMPLES_MAX = 24
AGE_WEIGHT = 0.8
LOW_SHARE_MIN = 0.25
NO_TRAFFIC_BYTES_PER_S = 1.0


class LinkSample(msgspec.Struct, frozen=True):
    """What the link carried in a window."""

    bytes: int
    duration_s: float


class LinkRate(msgspec.Struct, frozen=True):
    """Bytes per second. `low` is one deviation below `likely`, never under a quarter of it; `high` the best that was seen."""

    low: float
    likely: float
    high: float
    sample_count: int

    @property
    def is_known(self) -> bool:
        """Whether anything was measured."""
        return self.sample_count > 0


def link_rate(samples: tuple[LinkSample, ...]) -> LinkRate:
    """The rates by `samples`, oldest first; a sample counts by its length, and each newer one more than the one before."""
    told = [sample for sample in samples if sample.duration_s > 0][-SAMPLES_MAX:]
    if not told:
        return LinkRate(NO_TRAFFIC_BYTES_PER_S, NO_TRAFFIC_BYTES_PER_S, NO_TRAFFIC_BYTES_PER_S, 0)
    weights = [sample.duration_s * AGE_WEIGHT ** (len(told) - 1 - index) for index, sample in enumerate(told)]
    rates = [max(sample.bytes / sample.duration_s, NO_TRAFFIC_BYTES_PER_S) for sample in told]
    total = sum(weights)
    likely = sum(weight * rate for weight, rate in zip(weights, rates, strict=True)) / total
    variance = sum(weight * (rate - likely) ** 2 for weight, rate in zip(weights, rates, strict=True)) / total
    low = max(likely - math.sqrt(variance), likely * LOW_SHARE_MIN, NO_TRAFFIC_BYTES_PER_S)
    return LinkRate(low, likely, max(*rates, likely), len(told))
