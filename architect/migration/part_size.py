"""Part size: how much of a base disk or an output log goes into one question to the target's agent.

Each part is answered before the next one is sent, so long ones are quicker over a long way. On a slow or shared link they would
hold up what is asked behind them on the same connection, until that counts as unanswered: whether the target is alive, or the
abort.
"""

from __future__ import annotations

FIRST_BYTES = 256 << 10
MIN_BYTES = 32 << 10
QUICK_S = 0.1
SLOW_S = 0.5


class PartSize:
    """`bytes` is the size of the next part.

    :param bytes_max: the largest part, in bytes.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self.bytes = min(FIRST_BYTES, bytes_max)

    def took(self, sent_bytes: int, duration_s: float) -> None:
        """A part of that size has been answered in that time."""
        if duration_s > SLOW_S:
            self.bytes = max(int(self.bytes * SLOW_S / duration_s), min(MIN_BYTES, self._bytes_max))
        elif duration_s < QUICK_S and sent_bytes == self.bytes:
            self.bytes = min(self.bytes * 2, self._bytes_max)
