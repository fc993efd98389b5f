"""How fast the move's link is, from what it has carried so far: a careful, a likely and a hopeful rate. Pure.

A sample is what was acknowledged in a short window while there was something to send; memory and disk share the link, so both
count. A move's rate varies (other moves, other tenants, slow start), so decisions that must not fail use `low` and those that give
up use `high`.

With compression a link carries more than crosses it. `likely` and `high` count what was carried, as long as it is carried so; `low`
counts the wire alone, because what is left may not shrink at all.
"""

from __future__ import annotations

import math

import msgspec

SAMPLES_MAX = 24
AGE_WEIGHT = 0.8
LOW_SHARE_MIN = 0.25
NO_TRAFFIC_BYTES_PER_S = 1.0


class LinkSample(msgspec.Struct, frozen=True):
    """What the link carried in a window, and what compression kept off it."""

    bytes: int
    duration_s: float
    bytes_saved: int = 0

    @property
    def wire_rate(self) -> float:
        """Bytes per second that crossed it."""
        return max(self.bytes / self.duration_s, NO_TRAFFIC_BYTES_PER_S)

    @property
    def carried_rate(self) -> float:
        """Bytes per second that it was good for."""
        return max((self.bytes + self.bytes_saved) / self.duration_s, NO_TRAFFIC_BYTES_PER_S)


class LinkRate(msgspec.Struct, frozen=True):
    """Bytes per second. `low` is one deviation below the likely rate of the wire, never under a quarter of it; `high` the best that
    was seen."""

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
    carried = [sample.carried_rate for sample in told]
    wire, deviation = _spread([sample.wire_rate for sample in told], weights)
    likely, _ = _spread(carried, weights)
    low = max(wire - deviation, wire * LOW_SHARE_MIN, NO_TRAFFIC_BYTES_PER_S)
    return LinkRate(low, likely, max(*carried, likely), len(told))


def _spread(rates: list[float], weights: list[float]) -> tuple[float, float]:
    """Their weighted mean and deviation."""
    total = sum(weights)
    mean = sum(weight * rate for weight, rate in zip(weights, rates, strict=True)) / total
    variance = sum(weight * (rate - mean) ** 2 for weight, rate in zip(weights, rates, strict=True)) / total
    return mean, math.sqrt(variance)
