"""When to stop copying and switch: a pure decision after each round of memory, and at every look while a round runs.

- `precopy` waits for disk and memory, and cuts when the dirty set fits the pause budget, stops shrinking, or rounds are used up.
- `auto` does so too, but goes post-copy when the pause would be longer than tolerable, when the disk is written faster than the
  link carries it, or when the notice says now.
- `postcopy` cuts at once; memory and disk follow.

With a deadline, all must have left the source by then; after the cut nothing is dirtied any more, so what is left at the cut is
what must still travel. `auto` therefore goes on only as long as a cut *at the next look* would still leave `doubt` times the time
that the rest needs by the link's low rate, besides `notice_margin_s` for cut, commit and release. It cuts, too, when the rest
would fit only by a better rate than any that was seen: what is copied beside a running guest is partly copied in vain, and the
host takes a VM that stays with it. When not even `hope` times the best rate would do, the move is refused, and the VM still runs
here: another target may have a better link. The promise that follows: if a post-copy begun at once could have met the deadline,
the move meets it, unless the link falls below 1/`doubt` of its low rate after the decision, or rises above `hope` times its best.
(Nothing ends earlier than a post-copy begun at once: it sends every byte once.)

With a disk whose mirror is not ready there are two ways out, and a move is refused only if neither is left: a post-copy, which
sends the whole disk anew, and going on until the mirror is ready, with memory beside it. What a mirror has sent counts for the
second only, so the longer one has copied on in hope, the more it is the second that ends in time.
"""

from __future__ import annotations

import itertools
from enum import StrEnum

import msgspec

from architect.migration.bandwidth_limit import BandwidthLimit, why_lifted
from architect.migration.handover_plan import HandoverLimits, MirrorProgress, RoundStats
from architect.migration.link_rate import NO_TRAFFIC_BYTES_PER_S, LinkRate
from architect.model.handover_state import MigrationMode
from architect.model.sizes import format_size

RATE_SAMPLES_MIN = 3


class CutFacts(msgspec.Struct, frozen=True):
    """What the decision rests on.

    `rounds` are those that have ended; `is_running`: another one is under way, `bytes_left` is how memory stands in its middle.
    `mirror` is None where there is no mirror; `disk_rate` is the mirror's measured bytes/s, holes counted as its total counts them;
    `mirror_stuck_s` is how long it has not come closer to its end. `bandwidth` is the limit that holds now.
    """

    mode: MigrationMode
    rounds: tuple[RoundStats, ...]
    link: LinkRate
    bytes_left: int
    mirror: MirrorProgress | None = None
    disk_rate: float = 0.0
    mirror_stuck_s: float = 0.0
    remaining_s: float | None = None
    is_running: bool = False
    bandwidth: BandwidthLimit | None = None

    @property
    def lacks_disk(self) -> bool:
        """Whether the disk is not at the target yet."""
        return self.mirror is not None and not self.mirror.is_ready


class CutVerdict(StrEnum):
    """What to do next: (go on with) a round, wait for the disk's mirror, cut, or give up while the VM runs here."""

    ROUND = "round"
    WAIT = "wait"
    CUT = "cut"
    REFUSE = "refuse"


class CutDecision(msgspec.Struct, frozen=True):
    """The verdict and why; for a cut, what is left for after it. `lifts_limit`: the bandwidth limit holds no more."""

    verdict: CutVerdict
    why: str = ""
    postcopy: bool = False
    disk_postcopy: bool = False
    lifts_limit: bool = False

    @property
    def choice(self) -> str:
        """The verdict in a word, with how a cut is made."""
        if self.verdict is not CutVerdict.CUT:
            return f"{self.verdict.value}, limit lifted" if self.lifts_limit else self.verdict.value
        ways = [word for word, is_so in (("memory", self.postcopy), ("disk", self.disk_postcopy)) if is_so]
        return f"cut, post-copy of {' and '.join(ways)}" if ways else "cut"


def plan_cut(facts: CutFacts, limits: HandoverLimits) -> CutDecision:
    """What to do now. While a round runs: ROUND lets it go on, anything else stops it."""
    if facts.mode is MigrationMode.POSTCOPY and not facts.rounds:
        return CutDecision(CutVerdict.CUT, "post-copy was asked for", True, facts.lacks_disk)
    if facts.bandwidth is not None and (lifted := _without_limit(facts, facts.bandwidth, limits)) is not None:
        return lifted
    if (hurried := _by_deadline(facts, limits)) is not None:
        return hurried
    if facts.is_running:
        return CutDecision(CutVerdict.ROUND, "the round goes on")
    assert facts.rounds, "a cut is planned after a round"
    if facts.lacks_disk:
        return _beside_mirror(facts, limits)
    return _by_dirty_set(facts, limits)


def _without_limit(facts: CutFacts, bandwidth: BandwidthLimit, limits: HandoverLimits) -> CutDecision | None:
    """To lift the limit and copy on: only then the link shows what it carries, and what can be in time."""
    rate = facts.link.low if facts.link.is_known else bandwidth.bytes_per_s
    usable_s = None if facts.remaining_s is None else facts.remaining_s - limits.notice_margin_s
    why = why_lifted(bandwidth, facts.bytes_left + _disk_bytes_left(facts), rate, usable_s, limits.doubt)
    return CutDecision(CutVerdict.ROUND, why, lifts_limit=True) if why else None


def _by_dirty_set(facts: CutFacts, limits: HandoverLimits) -> CutDecision:
    send_s = _send_s(facts)
    if send_s <= limits.pause_budget_s:
        return CutDecision(CutVerdict.CUT, f"{format_size(facts.bytes_left)} fit the pause: {send_s * 1e3:.1f} ms")
    if len(facts.rounds) >= limits.round_count_max:
        why = f"{limits.round_count_max} rounds are enough"
    elif (hot := _written_too_fast(facts)) or not _shrinks(facts.rounds, limits):
        why = hot or f"{format_size(facts.bytes_left)} are written again in every round"
    else:
        return CutDecision(CutVerdict.ROUND, f"{format_size(facts.bytes_left)} would take {send_s * 1e3:.0f} ms of pause")
    postcopy = facts.mode is MigrationMode.AUTO and send_s > limits.pause_tolerable_s
    return CutDecision(CutVerdict.CUT, f"{why}; the pause would be {send_s * 1e3:.0f} ms", postcopy)


def _beside_mirror(facts: CutFacts, limits: HandoverLimits) -> CutDecision:
    """Memory while the disk is still being copied: kept nearly clean, at no more rounds than that takes."""
    mirror = facts.mirror
    assert mirror is not None
    left = format_size(mirror.left_bytes)
    if facts.mirror_stuck_s > limits.mirror_stuck_s_max:
        why = f"the disk is written as fast as it is copied: {left} left for {facts.mirror_stuck_s:.0f} s"
        if facts.mode is MigrationMode.PRECOPY:
            return CutDecision(CutVerdict.REFUSE, f"pre-copy does not end: {why}")
        return CutDecision(CutVerdict.CUT, why, _send_s(facts) > limits.pause_tolerable_s, True)
    fits = _send_s(facts) <= limits.pause_budget_s or len(facts.rounds) >= limits.round_count_max
    if fits or not _shrinks(facts.rounds, limits):
        return CutDecision(CutVerdict.WAIT, f"{left} of disk are left")
    return CutDecision(CutVerdict.ROUND, f"{left} of disk are left, {format_size(facts.bytes_left)} of memory")


def _by_deadline(facts: CutFacts, limits: HandoverLimits) -> CutDecision | None:
    """What the deadline says; None while there is time enough."""
    if facts.remaining_s is None:
        return None
    usable_s = facts.remaining_s - limits.notice_margin_s
    latest_s = facts.remaining_s - limits.cutover_s_min
    if facts.is_running and facts.link.sample_count < RATE_SAMPLES_MIN and latest_s > RATE_SAMPLES_MIN * limits.poll_interval_s:
        return None  # the first looks tell little: slow start, a job that begins
    if not facts.is_running and not facts.link.is_known:
        return None  # the round ended before a look, just after its limit was lifted; the next one tells
    rest_s = _mirror_s(facts) + facts.bytes_left / facts.link.low
    if limits.doubt * rest_s + limits.poll_interval_s <= usable_s:
        return None
    if facts.mode is MigrationMode.PRECOPY:
        return _precopy_by_deadline(facts, latest_s, limits)
    return _auto_by_deadline(facts, latest_s, limits)


def _auto_by_deadline(facts: CutFacts, latest_s: float, limits: HandoverLimits) -> CutDecision | None:
    left = facts.bytes_left + (facts.mirror.whole_bytes if facts.mirror is not None and facts.lacks_disk else 0)
    cut_s, best_s = left / facts.link.likely, left / facts.link.high
    if facts.lacks_disk and (on := _on_with_mirror(facts, cut_s, latest_s, limits)) is not None:
        return None if facts.is_running else on
    beside = facts.bytes_left + _disk_bytes_left(facts)
    beside_best_s = beside / facts.link.high
    if min(best_s, beside_best_s) >= latest_s * limits.hope:
        return _refusal(facts, min(left, beside), latest_s, "post-copy" if left <= beside else "the move")
    if best_s > latest_s * (1.0 if beside * limits.hope < left else limits.hope):
        return (
            None if facts.is_running else _copied_on(facts, limits, f"{_in_hope(facts, beside, latest_s)}, with the disk's mirror")
        )
    if best_s > latest_s:
        why = _in_hope(facts, left, latest_s)
    else:
        rate = format_size(facts.link.likely)
        why = f"{format_size(left)} need {cut_s:.1f} s at {rate}/s, the host goes in {facts.remaining_s:.1f} s"
    postcopy = facts.bytes_left / facts.link.likely > limits.pause_tolerable_s
    return CutDecision(CutVerdict.CUT, why, postcopy, facts.lacks_disk)


def _in_hope(facts: CutFacts, left: int, latest_s: float) -> str:
    return f"{format_size(left)} need {format_size(left / latest_s)}/s, the best was {format_size(facts.link.high)}/s: hoped for"


def _on_with_mirror(facts: CutFacts, cut_s: float, latest_s: float, limits: HandoverLimits) -> CutDecision | None:
    """To go on until the disk's mirror is ready, if that is the sooner way, or the only one that is likely to end in time.

    :param cut_s: how long a cut now would need for all, the disk sent anew.
    """
    bound_s = latest_s - limits.poll_interval_s
    wait_s = _mirror_s(facts) + facts.bytes_left / facts.link.likely
    if wait_s < cut_s and wait_s <= bound_s:
        return CutDecision(CutVerdict.WAIT, f"the disk's mirror ends {latest_s - wait_s:.1f} s before it is too late")
    # Side by side only if nothing better is left: memory may be written again as fast as it goes beside the mirror.
    beside_s = max(_mirror_s(facts), (facts.bytes_left + _disk_bytes_left(facts)) / facts.link.likely)
    if cut_s > bound_s and beside_s <= bound_s:
        why = f"memory beside the disk's mirror: both end {latest_s - beside_s:.1f} s before it is too late"
        return _copied_on(facts, limits, why)
    return None


def _copied_on(facts: CutFacts, limits: HandoverLimits, why: str) -> CutDecision:
    """Another round; where memory has nothing that is worth one, the disk's mirror alone goes on."""
    is_idle = facts.lacks_disk and _send_s(facts) <= limits.pause_budget_s
    return CutDecision(CutVerdict.WAIT if is_idle else CutVerdict.ROUND, why)


def _precopy_by_deadline(facts: CutFacts, latest_s: float, limits: HandoverLimits) -> CutDecision | None:
    """Pre-copy leaves nothing for later: it waits for the disk, and then cuts with whatever pause that takes."""
    hopeful_s = _mirror_s(facts) + facts.bytes_left / facts.link.high
    if hopeful_s > latest_s:
        return _refusal(facts, facts.bytes_left, latest_s, "pre-copy")
    if facts.is_running:
        return None
    if facts.lacks_disk:
        return CutDecision(CutVerdict.WAIT, "pre-copy needs the whole disk before the cut")
    pause_s = _send_s(facts)
    return CutDecision(CutVerdict.CUT, f"the host goes in {facts.remaining_s:.1f} s; the pause is {pause_s * 1e3:.0f} ms")


def _refusal(facts: CutFacts, left: int, latest_s: float, way: str) -> CutDecision:
    mirror = facts.mirror
    disk = ""
    if mirror is not None and not mirror.is_ready:
        disk = f" ({format_size(mirror.left_bytes)} of disk not mirrored)"
    rate = format_size(facts.link.high)
    return CutDecision(
        CutVerdict.REFUSE,
        f"{way} cannot end before the host goes: {format_size(left)} are left{disk}, {rate}/s at best, {max(latest_s, 0):.1f} s",
    )


def _send_s(facts: CutFacts) -> float:
    return facts.bytes_left / facts.link.likely if facts.bytes_left else 0.0


def _mirror_s(facts: CutFacts) -> float:
    mirror = facts.mirror
    if mirror is None or mirror.is_ready:
        return 0.0
    # What is left in clusters at their measured rate; or in bytes, if that is sooner: clusters of zeros pass in no time.
    by_cluster_s = (mirror.total_bytes - mirror.done_bytes) / max(facts.disk_rate, NO_TRAFFIC_BYTES_PER_S)
    return min(by_cluster_s, mirror.left_bytes / max(facts.disk_rate * mirror.sent_share, NO_TRAFFIC_BYTES_PER_S))


def _disk_bytes_left(facts: CutFacts) -> int:
    """What the mirror still has to send."""
    return facts.mirror.left_bytes if facts.mirror is not None else 0


def _written_too_fast(facts: CutFacts) -> str:
    """Why another round is of no use, though each left less so far: memory is written as fast as the link carries it."""
    if len(facts.rounds) < 2 or facts.rounds[-1].duration_s <= 0:
        return ""
    written = facts.bytes_left / facts.rounds[-1].duration_s
    if written < facts.link.likely:
        return ""
    return f"memory is written at {format_size(written)}/s, the link carries {format_size(facts.link.likely)}/s"


def _shrinks(rounds: tuple[RoundStats, ...], limits: HandoverLimits) -> bool:
    """Whether one of the last two rounds left clearly less than the one before it."""
    recent = rounds[-3:]
    if len(recent) < 3:
        return True
    return any(after.dirty_after < before.dirty_after * limits.shrink_factor for before, after in itertools.pairwise(recent))
