"""Compression choice: whether the next frame of a bulk stream is compressed, by what the frames before it cost. No I/O, no clock.

    plain --link is the bottleneck--> trial --it would pay--> packed
      ^                                 |                        |
      '------ it would not -------------'                        |
      '------ hardly smaller, or the link is no bottleneck ------'

Compression pays where the link, or the bandwidth limit, and not a processor holds the stream up, and what it saves there is more
than what it costs here. Windows of at least `WINDOW_S` and `WINDOW_BYTES` tell. A plain stream that the link holds up tries one
frame: that gives ratio and speed. A packed stream that the link does not hold up any more goes plain for one window, to see what
the link carries by now. Every question doubles the number of windows until the next one, every window that needs none halves it: so
data that does not shrink, or a link at the threshold, costs little. A trial counts time of the processor, because
the wall clock of one frame tells who else ran just then; whether the processor is too busy is seen by what packed windows achieve.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from architect.model.compression import Compression

WINDOW_S = 0.1
WINDOW_BYTES = 512 << 10
LIMITED_SHARE = 0.5
GAIN_MIN = 1.25
RATIO_MAX = 0.9
TRIAL_BYTES_MIN = 64 << 10
HOLD_WINDOWS_MAX = 32
BELIEF_FADES = 1.1


class FrameCost(msgspec.Struct):
    """What a frame cost, or several. `wire_bytes` of `plain_bytes` were sent, in `duration_s`; of that `limited_s` the link or the
    limit was what held it up, `work_s` the processor worked, and `pack_s` more for compression. The peer's kernel
    acknowledged `acked_bytes` meanwhile."""

    plain_bytes: int = 0
    wire_bytes: int = 0
    duration_s: float = 0.0
    limited_s: float = 0.0
    work_s: float = 0.0
    pack_s: float = 0.0
    acked_bytes: int = 0

    def add(self, other: FrameCost) -> None:
        """Count another one in."""
        self.plain_bytes += other.plain_bytes
        self.wire_bytes += other.wire_bytes
        self.duration_s += other.duration_s
        self.limited_s += other.limited_s
        self.work_s += other.work_s
        self.pack_s += other.pack_s
        self.acked_bytes += other.acked_bytes

    @property
    def ratio(self) -> float:
        """How much of it is left on the wire."""
        return self.wire_bytes / self.plain_bytes

    @property
    def is_link_bound(self) -> bool:
        """Whether the link held it up most of the time."""
        return self.limited_s >= LIMITED_SHARE * self.duration_s


class Phase(Enum):
    """What frames are. A trial is a plain stream whose next frame is compressed to see what that gives."""

    PLAIN = "plain"
    TRIAL = "trial"
    PACKED = "packed"


class CompressionChoice:
    """For one stream. Ask `packs` before a frame, tell `took` after it."""

    def __init__(self, wish: Compression) -> None:
        self._wish = wish
        self.phase = Phase.PACKED if wish is Compression.ZSTD else Phase.PLAIN
        self._window = FrameCost()
        self._plain = FrameCost()
        self._achieved: float | None = None
        self._hold = 0
        self._next_hold = 1

    def packs(self, plain_bytes: int) -> bool:
        """Whether a frame of so many bytes is to be compressed."""
        return self.phase is Phase.PACKED or (self.phase is Phase.TRIAL and plain_bytes >= TRIAL_BYTES_MIN)

    def took(self, cost: FrameCost, *, packed: bool) -> None:
        """A frame was sent; `packed`: it had been compressed (and sent plain, if that did not make it smaller)."""
        if self._wish is not Compression.AUTO:
            return
        if self.phase is Phase.TRIAL:
            if packed:
                self._tried(cost)
            return
        self._window.add(cost)
        if self._window.duration_s < WINDOW_S or self._window.plain_bytes < WINDOW_BYTES:
            return
        window, self._window = self._window, FrameCost()
        self._hold = max(self._hold - 1, 0)
        if self.phase is Phase.PLAIN:
            self._after_plain(window)
        else:
            self._after_packed(window)

    def _after_plain(self, window: FrameCost) -> None:
        if not window.is_link_bound:
            self._next_hold = max(self._next_hold // 2, 1)
        elif not self._hold:
            self._plain = window
            self.phase = Phase.TRIAL

    def _tried(self, trial: FrameCost) -> None:
        """Go packed if that is clearly quicker: by trial and window, and by what it came to when it was done last."""
        plain = self._plain
        link_rate = plain.acked_bytes / plain.duration_s
        packed_s = max(plain.work_s / plain.plain_bytes + trial.pack_s / trial.plain_bytes, trial.ratio / max(link_rate, 1.0))
        is_quicker = link_rate * GAIN_MIN * packed_s <= 1 and trial.ratio <= RATIO_MAX
        if is_quicker and self._achieved is not None and self._achieved < link_rate * GAIN_MIN:
            is_quicker = False
            self._achieved *= BELIEF_FADES  # the processor may have been busy then
        self._turn(Phase.PACKED if is_quicker else Phase.PLAIN)

    def _after_packed(self, window: FrameCost) -> None:
        if window.ratio > RATIO_MAX:
            self._turn(Phase.PLAIN)
        elif window.is_link_bound:
            self._achieved = None
            self._next_hold = max(self._next_hold // 2, 1)
        elif not self._hold:
            self._achieved = window.plain_bytes / window.duration_s
            self.phase = Phase.PLAIN  # for a window: what would the link carry?

    def _turn(self, phase: Phase) -> None:
        """Go on as `phase` for a while, longer each time."""
        self.phase = phase
        self._hold = self._next_hold
        self._next_hold = min(self._next_hold * 2, HOLD_WINDOWS_MAX)
