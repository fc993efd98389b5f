"""What a move has seen of its link and its disk's mirror so far, and the facts for `cut_plan` that follow. A pure value.

The engine keeps one from round to round; the driver's looks in the middle of a round begin with it and add what they see.
"""

from __future__ import annotations

import msgspec

from architect.migration.cut_plan import CutDecision, CutFacts
from architect.migration.handover_plan import HandoverPlan, MemoryProgress, MirrorProgress, RoundStats
from architect.migration.link_rate import SAMPLES_MAX, LinkSample, link_rate
from architect.model.sizes import MIB, PAGE_BYTES
from architect.wire.agent_messages import MoveDecision

CLOSER_SHARE = 0.02
TELLING_BYTES = MIB
DECISIONS_FIRST_KEPT = 8
DECISIONS_MAX = 64


class CopyWatch(msgspec.Struct, frozen=True):
    """`closest_bytes`: the least that the mirror ever had left, and since when it is so (clearly less counts, not a little).
    `is_unlimited`: the plan's bandwidth limit was lifted."""

    samples: tuple[LinkSample, ...] = ()
    mirror: MirrorProgress | None = None
    mirror_since_s: float = 0.0
    closest_bytes: int = 0
    closest_since_s: float = 0.0
    is_unlimited: bool = False

    def carried(self, samples: tuple[LinkSample, ...], stats: RoundStats) -> CopyWatch:
        """After a round. One too short to be looked at tells by its own figures, if it sent enough or nothing else is known; not
        while a disk shares the link, for its part is not among them."""
        is_telling = stats.bytes >= TELLING_BYTES and (self.mirror is None or self.mirror.is_ready)
        if not samples and stats.duration_s > 0 and (is_telling or (stats.bytes and not self.samples)):
            samples = (LinkSample(stats.bytes, stats.duration_s, stats.bytes_saved),)
        return msgspec.structs.replace(self, samples=(*self.samples, *samples)[-SAMPLES_MAX:])

    def lifted(self) -> CopyWatch:
        """The bandwidth limit was lifted: what was seen of the link under it tells nothing more."""
        return msgspec.structs.replace(self, samples=(), is_unlimited=True)

    def mirror_begins(self, now_s: float) -> CopyWatch:
        """The mirror is about to be started."""
        return msgspec.structs.replace(self, mirror_since_s=now_s, closest_since_s=now_s)

    def mirrored(self, mirror: MirrorProgress | None, now_s: float) -> CopyWatch:
        """After a look at the mirror; None leaves what was known."""
        if mirror is None:
            return self
        left = mirror.total_bytes - mirror.done_bytes
        if self.mirror is not None and left > self.closest_bytes * (1 - CLOSER_SHARE):
            return msgspec.structs.replace(self, mirror=mirror)
        return msgspec.structs.replace(self, mirror=mirror, closest_bytes=left, closest_since_s=now_s)

    def facts(
        self, plan: HandoverPlan, rounds: tuple[RoundStats, ...], now_s: float, progress: MemoryProgress | None = None
    ) -> CutFacts:
        """The facts after the last of `rounds`, or with `progress` in the middle of the next one."""
        left = rounds[-1].dirty_bytes if rounds else 0
        if progress is not None:
            left = progress.pages_left * PAGE_BYTES + progress.queued_bytes
        mirrored_s = max(now_s - self.mirror_since_s, 1e-3)
        return CutFacts(
            mode=plan.mode,
            rounds=rounds,
            link=link_rate(self.samples),
            bytes_left=left,
            mirror=self.mirror,
            disk_rate=self.mirror.done_bytes / mirrored_s if self.mirror is not None else 0.0,
            mirror_stuck_s=now_s - self.closest_since_s if self.mirror is not None else 0.0,
            remaining_s=None if plan.deadline_at_s is None else plan.deadline_at_s - now_s,
            is_running=progress is not None,
            bandwidth=None if self.is_unlimited else plan.bandwidth,
        )


def told(plan: HandoverPlan, facts: CutFacts, decision: CutDecision, now_s: float, round_number: int) -> MoveDecision:
    """Facts and choice as a report carries them."""
    mirror, last = facts.mirror, facts.rounds[-1] if facts.rounds else None
    return MoveDecision(
        at_s=round(now_s - plan.started_at_s, 3),
        round=round_number,
        dirty_bytes=facts.bytes_left,
        disk_bytes=mirror.left_bytes if mirror is not None else 0,
        dirty_bytes_s=int(last.dirty_bytes / last.duration_s) if last is not None and last.duration_s > 0 else 0,
        bandwidth_bytes_s=int(facts.link.likely) if facts.link.is_known else 0,
        bandwidth_low_bytes_s=int(facts.link.low) if facts.link.is_known else 0,
        remaining_s=None if facts.remaining_s is None else round(facts.remaining_s, 3),
        choice=decision.choice,
        why=decision.why,
    )


def with_decision(decisions: tuple[MoveDecision, ...], decision: MoveDecision) -> tuple[MoveDecision, ...]:
    """One more decision. Of a choice that repeats itself (waiting for a disk) the newest is kept; of too many, first and last."""
    if len(decisions) > 1 and decisions[-1].choice == decisions[-2].choice == decision.choice == "wait":
        decisions = decisions[:-1]
    if len(decisions) >= DECISIONS_MAX:
        decisions = decisions[:DECISIONS_FIRST_KEPT] + decisions[DECISIONS_FIRST_KEPT + 1 :]
    return (*decisions, decision)
