"""Bandwidth limit: what a move may send per second, and when a deadline lifts it. Pure.

A limit is somebody's wish for the other users of a link; a VM that is still on its host when that goes is lost. So a limit gives
way to a deadline: the host's default at once, one that was asked for with the move once what is left might not be gone in time
within it, and any for the rest of a post-copy. A limit that was lifted does not come back in the same move.
"""

from __future__ import annotations

import msgspec

from architect.model.sizes import format_size

LIFT_AHEAD_S = 1.0  # a few looks: what was measured under the limit says nothing of the link


class BandwidthLimit(msgspec.Struct, frozen=True):
    """Bytes per second, over all streams of the move and its disk. `is_default`: the host's, not asked for with this move."""

    bytes_per_s: int
    is_default: bool = False


def chosen_limit(asked_bytes_s: int | None, default_bytes_s: int) -> BandwidthLimit | None:
    """The limit of a move: what was asked for (0: none), or else the host's default (0: none)."""
    if asked_bytes_s is not None:
        return BandwidthLimit(asked_bytes_s) if asked_bytes_s else None
    return BandwidthLimit(default_bytes_s, is_default=True) if default_bytes_s else None


def why_lifted(limit: BandwidthLimit, rest_bytes: int, rate: float, usable_s: float | None, doubt: float) -> str:
    """Why the limit is to be lifted now; empty if it holds.

    :param rate: what the move sends per second while the limit holds, as far as that was measured.
    :param usable_s: how long the move may still take; None without a deadline.
    """
    if usable_s is None:
        return ""
    if limit.is_default:
        return f"the host goes in time: its default limit of {format_size(limit.bytes_per_s)}/s does not hold"
    need_s = doubt * rest_bytes / min(rate, limit.bytes_per_s)
    if need_s + LIFT_AHEAD_S <= usable_s:
        return ""
    left = max(usable_s, 0.0)
    return f"{format_size(rest_bytes)} within {format_size(limit.bytes_per_s)}/s may not be gone in {left:.1f} s: limit lifted"
