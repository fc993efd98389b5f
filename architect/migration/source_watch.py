"""Source watch: whether what a VM at its target still lacks can still come from the host that it left.

A source keeps it for `status_hold_s`, and takes every connection up again. So silence alone ends nothing before that: a link that
is cut is waited for, and the guest stands where it needs what is missing. It ends earlier when the fabric says that the source's
host is gone for good, which it repeats as long as it holds, *and* nothing was heard from there on this side either: a host that
only the control plane does not reach still serves. `Verdict` is pure; `SourceWatch` looks, and tells people.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import msgspec

from architect.errors import ArchitectError, LostError
from architect.migration.handover_plan import HandoverLimits
from architect.migration.target_ports import TargetMemoryPort
from architect.model.ids import HostName
from architect.model.times import rfc3339
from architect.runtime.clock import Clock


class GoneWord(msgspec.Struct, frozen=True):
    """The fabric's word that a host is gone for good, and why; it was heard at `at_s` (monotonic)."""

    why: str
    at_s: float


class Verdict(msgspec.Struct, frozen=True):
    """`is_silent`: the source is not reached at present; `lost_because`: what is missing will never come, if not empty."""

    is_silent: bool
    lost_because: str = ""


def judge(silent_s: float, word: GoneWord | None, now_s: float, limits: HandoverLimits) -> Verdict:
    """What to make of a source that has not been heard for so long."""
    if silent_s < limits.silent_s_min:
        return Verdict(is_silent=False)
    if word is not None and now_s - word.at_s <= limits.gone_word_s:
        return Verdict(is_silent=True, lost_because=f"is gone: {word.why}")
    if silent_s > limits.unreached_s_max:
        return Verdict(is_silent=True, lost_because=f"has not been reached for {silent_s:.0f} s, longer than it keeps anything")
    return Verdict(is_silent=True)


class SourceWatch:
    """Watches the source of one VM that fills.

    :param tell: called with why the VM may have to wait, when that changes; "" when it does not (any more).
    """

    def __init__(
        self, vm: str, source: HostName, memory: TargetMemoryPort, clock: Clock, limits: HandoverLimits, tell: Callable[[str], None]
    ) -> None:
        self._vm = vm
        self._source = source
        self._memory = memory
        self._clock = clock
        self._limits = limits
        self._tell = tell
        self._told = ""
        self._word: GoneWord | None = None

    def host_is_gone(self, why: str) -> None:
        """The fabric says so, now."""
        self._word = GoneWord(why, self._clock.monotonic_s())

    async def run(self) -> NoReturn:
        """Look, until cancelled.

        Raises:
            LostError: what is missing will never come.
        """
        try:
            while True:
                if (silent_s := await self._silent_s()) is not None:
                    self._look(silent_s)
                await self._clock.sleep(self._limits.source_look_s)
        finally:
            self._say("")

    async def _silent_s(self) -> float | None:
        try:
            return await self._memory.silent_s()
        except ArchitectError:  # a memory process that is being replaced says nothing for a moment
            return None

    def _look(self, silent_s: float) -> None:
        verdict = judge(silent_s, self._word, self._clock.monotonic_s(), self._limits)
        if verdict.lost_because:
            cause = f"memory or disk of it was still at host {self._source}, which {verdict.lost_because}"
            raise LostError(self._vm, cause, f"see host {self._source}")
        if not verdict.is_silent:
            self._say("")
        elif not self._told:
            since = rfc3339(self._clock.wall_s() - silent_s)
            self._say(f"waits for what is still at host {self._source}, which has not been reached since {since}")

    def _say(self, words: str) -> None:
        if words != self._told:
            self._told = words
            self._tell(words)
