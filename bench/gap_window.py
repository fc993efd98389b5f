"""Answers to datagrams over a stretch of time: the longest silence, and what was lost. Pure; `gap_probe` feeds it."""

from __future__ import annotations

import msgspec

ANSWER_TIMEOUT_S = 1.0
NOTED_S = 0.05
NOTED_MAX = 50


class Silence(msgspec.Struct, frozen=True):
    """A time without an answer, at least NOTED_S long."""

    end_s: float
    length_ms: float


class GapReport(msgspec.Struct, frozen=True):
    """A window as it stands. `lost_at_s`: when the first datagrams without an answer were sent, NOTED_MAX at most."""

    gap_ms: float
    sent: int
    received: int
    lost: int
    sender_stall_ms: float
    silences: tuple[Silence, ...] = ()
    lost_at_s: tuple[float, ...] = ()


class GapWindow:
    """Counts from the last `reset` on. All times are seconds of one clock.

    A silence that had begun before the window counts whole: who resets, does so while answers come.
    """

    def __init__(self) -> None:
        self._arrived_s: float | None = None
        self._sent_s: float | None = None
        self._first_sequence = self._next_sequence = 0
        self._waiting: dict[int, float] = {}
        self._received = 0
        self._longest_s = self._stall_s = 0.0
        self._silences: list[Silence] = []

    def reset(self) -> None:
        """Begin a new window; answers to what was sent before count for the silence only."""
        self._first_sequence = self._next_sequence
        self._waiting.clear()
        self._received = 0
        self._longest_s = self._stall_s = 0.0
        self._silences = []

    def sent(self, now_s: float) -> int:
        """A datagram goes out; its number."""
        if self._sent_s is not None:
            self._stall_s = max(self._stall_s, now_s - self._sent_s)
        self._sent_s = now_s
        sequence, self._next_sequence = self._next_sequence, self._next_sequence + 1
        self._waiting[sequence] = now_s
        return sequence

    def received(self, sequence: int, now_s: float) -> None:
        """An answer came in."""
        if self._arrived_s is not None:
            silent_s = now_s - self._arrived_s
            self._longest_s = max(self._longest_s, silent_s)
            if silent_s >= NOTED_S and len(self._silences) < NOTED_MAX:
                self._silences.append(Silence(now_s, silent_s * 1000))
        self._arrived_s = now_s
        if self._waiting.pop(sequence, None) is not None:
            self._received += 1

    def report(self, now_s: float) -> GapReport:
        """The window so far. Lost is what was not answered in ANSWER_TIMEOUT_S."""
        silent_s = now_s - self._arrived_s if self._arrived_s is not None else 0.0
        lost_at_s = [sent_s for sent_s in self._waiting.values() if now_s - sent_s > ANSWER_TIMEOUT_S]
        return GapReport(
            gap_ms=max(self._longest_s, silent_s) * 1000,
            sent=self._next_sequence - self._first_sequence,
            received=self._received,
            lost=len(lost_at_s),
            sender_stall_ms=self._stall_s * 1000,
            silences=tuple(self._silences),
            lost_at_s=tuple(lost_at_s[:NOTED_MAX]),
        )

    def pause(self) -> None:
        """Nothing is sent for a while, and so nothing comes back."""
        self._arrived_s = self._sent_s = None
        self._waiting.clear()
