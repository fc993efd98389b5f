"""Looks at memory in the middle of a round: what the link carries, what is left, and whether the copy may go on.

The decision is `cut_plan`'s, by the same facts as after a round; a look only stops the copy, and the engine then decides anew.
"""

from __future__ import annotations

from collections.abc import Callable

from architect.migration.copy_watch import told
from architect.migration.cut_plan import CutVerdict, plan_cut
from architect.migration.handover_plan import MemoryProgress, MirrorProgress, RoundStats
from architect.migration.link_rate import LinkSample
from architect.migration.source_engine import SourceState, hurried
from architect.migration.source_ports import SourceMemoryPort
from architect.runtime.clock import Clock
from architect.wire.agent_messages import MoveDecision


class CopyLooks:
    """The looks at one round, which began with `state`.

    :param tell: called with what every look has seen.

    `lift` is the look that found the bandwidth limit to be lifted, if one did.
    """

    def __init__(
        self,
        state: SourceState,
        clock: Clock,
        memory: SourceMemoryPort,
        tell: Callable[[MemoryProgress, MoveDecision], None],
    ) -> None:
        self._state = state
        self._clock = clock
        self._memory = memory
        self._tell = tell
        self._watch = state.watch
        self._seen_at_s = clock.monotonic_s()
        self._last: MemoryProgress | None = None
        self.samples: tuple[LinkSample, ...] = ()
        self.is_due = False
        self.lift: MoveDecision | None = None

    async def look(self, mirror: MirrorProgress | None, deadline_at_s: float | None) -> None:
        """Look once.

        Raises:
            ArchitectError: the memory process does not say.
        """
        progress = await self._memory.progress()
        now_s = self._clock.monotonic_s()
        self._sample(progress, now_s)
        self._watch = self._watch.mirrored(mirror, now_s)
        state = hurried(self._state, deadline_at_s)
        facts = self._watch.facts(state.plan, state.rounds, now_s, progress)
        decision = plan_cut(facts, state.plan.limits)
        self.is_due = decision.verdict is not CutVerdict.ROUND
        seen = told(state.plan, facts, decision, now_s, state.round_count + 1)
        if decision.lifts_limit:
            self.lift, self.samples, self._watch = seen, (), self._watch.lifted()
        self._tell(progress, seen)

    def _sample(self, progress: MemoryProgress, now_s: float) -> None:
        """What the link carried since the last look. The time before the first one is not counted: it began with little."""
        before, self._last = self._last, progress
        if before is not None and progress.pages_left:
            saved = max(progress.link_bytes_saved - before.link_bytes_saved, 0)
            sample = LinkSample(max(progress.link_bytes - before.link_bytes, 0), now_s - self._seen_at_s, saved)
            self.samples = (*self.samples, sample)
            stats = RoundStats(0, sample.bytes, sample.duration_s, progress.pages_left, saved)
            self._watch = self._watch.carried((sample,), stats)
        self._seen_at_s = now_s
