"""When to stop copying and switch: a pure decision after each round of memory and each look at the disk's mirror.

- `precopy` waits for disk and memory, and cuts when the dirty set fits the pause budget, stops shrinking, or rounds are used up.
- `auto` does so too, but goes post-copy when the pause would be longer than tolerable, or when the notice says now.
- `postcopy` cuts at once; memory and disk follow.

With a deadline, nothing may be left to send when the host goes: every way out is checked against `remaining_s`, and a move that
cannot end in time is refused by name while the VM still runs here (the caller then parks it).
"""

from __future__ import annotations

import itertools
from enum import StrEnum

import msgspec

from architect.migration.handover_plan import HandoverLimits, MirrorProgress, RoundStats
from architect.model.handover_state import MigrationMode
from architect.model.sizes import MIB, format_size

NO_TRAFFIC_BYTES_PER_S = 1.0


class CutFacts(msgspec.Struct, frozen=True):
    """What the decision rests on. `mirror` is None where there is no mirror; `disk_rate` is the mirror's measured bytes/s."""

    mode: MigrationMode
    rounds: tuple[RoundStats, ...]
    mirror: MirrorProgress | None
    disk_rate: float
    remaining_s: float | None
    bulk_overdue: bool = False


class CutVerdict(StrEnum):
    """What to do next."""

    ROUND = "round"
    WAIT = "wait"
    CUT = "cut"
    REFUSE = "refuse"


class CutDecision(msgspec.Struct, frozen=True):
    """The verdict; for a cut, what is left for after it; for a refusal, why."""

    verdict: CutVerdict
    postcopy: bool = False
    disk_postcopy: bool = False
    reason: str = ""


def memory_rate(rounds: tuple[RoundStats, ...]) -> float:
    """Bytes per second that the link carries: the best of the rounds that were long enough to tell, or the last one's."""
    telling = [r.bytes / r.duration_s for r in rounds if r.bytes >= MIB and r.duration_s > 0]
    if telling:
        return max(telling)
    last = rounds[-1] if rounds else None
    return last.bytes / last.duration_s if last and last.duration_s > 0 and last.bytes else NO_TRAFFIC_BYTES_PER_S


def plan_cut(facts: CutFacts, limits: HandoverLimits) -> CutDecision:
    """What to do after the last of `facts.rounds`."""
    if facts.mode is MigrationMode.POSTCOPY and not facts.rounds:
        return CutDecision(CutVerdict.CUT, postcopy=True, disk_postcopy=facts.mirror is not None and not facts.mirror.is_ready)
    assert facts.rounds, "a cut is planned after a round"
    send_s = _send_s(facts)
    usable_s = None if facts.remaining_s is None else facts.remaining_s - limits.notice_margin_s
    if usable_s is not None and (facts.bulk_overdue or _is_late(facts, send_s, usable_s, limits)):
        return _cut_by_deadline(facts, send_s, usable_s, limits)
    if facts.mirror is not None and not facts.mirror.is_ready:
        fits = send_s <= limits.pause_budget_s or len(facts.rounds) >= limits.round_count_max
        return CutDecision(CutVerdict.WAIT if fits or not _shrinks(facts.rounds, limits) else CutVerdict.ROUND)
    if send_s <= limits.pause_budget_s:
        return CutDecision(CutVerdict.CUT)
    if len(facts.rounds) < limits.round_count_max and _shrinks(facts.rounds, limits):
        return CutDecision(CutVerdict.ROUND)
    return CutDecision(CutVerdict.CUT, postcopy=_prefers_postcopy(facts, send_s, limits))


def _send_s(facts: CutFacts) -> float:
    last = facts.rounds[-1]
    return last.dirty_bytes / memory_rate(facts.rounds) if last.dirty_after else 0.0


def _mirror_s(facts: CutFacts) -> float:
    mirror = facts.mirror
    if mirror is None or mirror.is_ready:
        return 0.0
    return (mirror.total_bytes - mirror.done_bytes) / max(facts.disk_rate, NO_TRAFFIC_BYTES_PER_S)


def _whole_disk_s(facts: CutFacts) -> float:
    """Time to send the whole disk. The mirror's rate counts holes, as its total does, so it may be the higher one."""
    assert facts.mirror is not None
    return facts.mirror.total_bytes / max(facts.disk_rate, memory_rate(facts.rounds))


def _is_late(facts: CutFacts, send_s: float, usable_s: float, limits: HandoverLimits) -> bool:
    """Whether another round (or poll) might not leave the time for what follows it."""
    next_round_s = max(facts.rounds[-1].duration_s, send_s, limits.poll_interval_s)
    return usable_s <= send_s + next_round_s + _later_disk_s(facts)


def _later_disk_s(facts: CutFacts) -> float:
    """Time that the disk needs after the cut, if the cut were now and the disk's mirror were not going to be ready in time."""
    mirror = facts.mirror
    if mirror is None or mirror.is_ready:
        return 0.0
    if facts.mode is MigrationMode.PRECOPY:
        return _mirror_s(facts)
    # A post-copy of the disk starts from nothing: the target's fresh overlay takes none of what was mirrored.
    return min(_mirror_s(facts), _whole_disk_s(facts))


def _cut_by_deadline(facts: CutFacts, send_s: float, usable_s: float, limits: HandoverLimits) -> CutDecision:
    mirror = facts.mirror
    disk_left = mirror is not None and not mirror.is_ready
    if facts.mode is MigrationMode.PRECOPY:
        if disk_left or facts.bulk_overdue:
            if facts.bulk_overdue or _mirror_s(facts) + send_s > usable_s:
                return _refusal(facts, usable_s, "pre-copy")
            return CutDecision(CutVerdict.WAIT)
        return _refusal(facts, usable_s, "pre-copy") if send_s > usable_s else CutDecision(CutVerdict.CUT)
    if disk_left and not facts.bulk_overdue and _mirror_s(facts) + send_s + limits.poll_interval_s <= usable_s:
        return CutDecision(CutVerdict.WAIT)
    disk_s = _whole_disk_s(facts) if disk_left else 0.0
    if send_s + disk_s > usable_s:
        return _refusal(facts, usable_s, "post-copy")
    postcopy = facts.bulk_overdue or send_s > limits.pause_tolerable_s
    return CutDecision(CutVerdict.CUT, postcopy=postcopy, disk_postcopy=disk_left)


def _refusal(facts: CutFacts, usable_s: float, way: str) -> CutDecision:
    mirror = facts.mirror
    disk = "" if mirror is None or mirror.is_ready else f" and {format_size(mirror.total_bytes - mirror.done_bytes)} of disk"
    left = format_size(facts.rounds[-1].dirty_bytes)
    rate = format_size(memory_rate(facts.rounds))
    return CutDecision(
        CutVerdict.REFUSE,
        reason=f"{way} cannot end before the host goes: {left} of memory{disk} are left, {rate}/s, {max(usable_s, 0):.1f} s",
    )


def _shrinks(rounds: tuple[RoundStats, ...], limits: HandoverLimits) -> bool:
    """Whether one of the last two rounds left clearly less than the one before it."""
    recent = rounds[-3:]
    if len(recent) < 3:
        return True
    return any(after.dirty_after < before.dirty_after * limits.shrink_factor for before, after in itertools.pairwise(recent))


def _prefers_postcopy(facts: CutFacts, send_s: float, limits: HandoverLimits) -> bool:
    return facts.mode is MigrationMode.AUTO and send_s > limits.pause_tolerable_s
