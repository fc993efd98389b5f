"""A move on a link and a guest that are known in advance, decided by `cut_plan`, and the oracle that knows them, too.

Memory has a cold and a hot part; the guest writes pages of the hot one at random. The link's rate is a list of steps. Everything
is sent as fluid; where it is compressed the cold part goes first, and each shrinks by its own ratio. The oracle makes a post-copy
at once, which sends every byte once: nothing ends earlier, so a deadline that it misses could not have been met.
"""

from __future__ import annotations

import math
import random

import msgspec

from architect.migration import HandoverPlan, MemoryProgress, MirrorProgress, RoundStats
from architect.migration.bandwidth_limit import BandwidthLimit
from architect.migration.copy_watch import CopyWatch
from architect.migration.cut_plan import CutDecision, CutVerdict, plan_cut
from architect.migration.handover_plan import HandoverLimits
from architect.migration.link_rate import LinkSample, link_rate
from architect.model.sizes import MIB, PAGE_BYTES
from tests.migration.handover_values import plan

LIMITS = HandoverLimits()
CUTOVER_S = 0.4
ENDLESS_S = 800.0  # how long a move without a deadline may take
LATE_S_MAX = 60.0  # a move that has neither been cut nor refused by then will never be


class Case(msgspec.Struct, frozen=True):
    """`link` steps are (seconds, bytes/s); the last one holds for ever. `disk_bytes` 0: no disk to move. The oracle knows no
    `limit`. Of memory `ratios` (cold, hot) cross the wire; the disk is not compressed."""

    memory_bytes: int
    hot_bytes: int
    written_bytes_s: float
    disk_bytes: int
    link: tuple[tuple[float, float], ...]
    deadline_s: float
    limit: BandwidthLimit | None = None
    ratios: tuple[float, float] = (1.0, 1.0)


class Outcome(msgspec.Struct, frozen=True):
    """`end_s`: when all was at the target (infinite after a refusal); `low_at_choice`: the wire's low rate at the look before the
    choice, `high_at_choice`: the best one until then."""

    end_s: float
    decided_at_s: float
    decision: CutDecision
    low_at_choice: float
    high_at_choice: float
    looks: int


def rate_at(case: Case, at_s: float) -> float:
    """The link's rate at a moment."""
    for length_s, rate in case.link:
        if at_s < length_s:
            return rate
        at_s -= length_s
    return case.link[-1][1]


def end_of(case: Case, begin_s: float, size_bytes: float) -> float:
    """When the link will have carried so much, from a moment on."""
    at_s, left = begin_s, size_bytes
    edges, total_s = [], 0.0
    for length_s, _ in case.link:
        total_s += length_s
        edges.append(total_s)
    for edge_s in edges:
        if edge_s <= at_s:
            continue
        carried = (edge_s - at_s) * rate_at(case, at_s)
        if carried >= left:
            return at_s + left / rate_at(case, at_s)
        left, at_s = left - carried, edge_s
    return at_s + left / case.link[-1][1]


def oracle_end_s(case: Case) -> float:
    """When everything is at the target if a post-copy begins at once."""
    cold, hot = case.ratios
    memory = (case.memory_bytes - case.hot_bytes) * cold + case.hot_bytes * hot
    return end_of(case, CUTOVER_S, memory + case.disk_bytes)


def play(case: Case, limits: HandoverLimits = LIMITS) -> Outcome:
    """The move as `cut_plan` decides it, looked at every poll interval; cut or refused in the end, or the model fails."""
    move = _Move(case, msgspec.structs.replace(plan(deadline_at_s=case.deadline_s), limits=limits))
    low = 0.0
    end_s = (case.deadline_s if math.isfinite(case.deadline_s) else ENDLESS_S) + LATE_S_MAX
    for looks in range(1, math.ceil(end_s / limits.poll_interval_s)):
        move.go_on(limits.poll_interval_s)
        decision = move.decide()
        if decision.verdict is CutVerdict.REFUSE:
            return Outcome(math.inf, move.now_s, decision, low, move.best_rate, looks)
        if decision.verdict is CutVerdict.CUT:
            rest = move.left_on_wire + (case.disk_bytes if decision.disk_postcopy else 0)
            return Outcome(end_of(case, move.now_s + CUTOVER_S, rest), move.now_s, decision, low, move.best_rate, looks)
        low = link_rate(tuple(LinkSample(sample.bytes, sample.duration_s) for sample in move.watch.samples)).low
    raise AssertionError(f"no end: {case}")


class _Move:
    """A copy under way: rounds over memory, the disk's mirror beside them, at equal shares of the link."""

    def __init__(self, case: Case, handover: HandoverPlan) -> None:
        self._case = case
        self._plan = msgspec.structs.replace(handover, bandwidth=case.limit)
        self.watch = CopyWatch().mirror_begins(0.0) if case.disk_bytes else CopyWatch()
        self.now_s = 0.0
        self._cold = float(case.memory_bytes - case.hot_bytes)
        self._hot = float(case.hot_bytes)
        self._disk = float(case.disk_bytes)
        self._rounds: tuple[RoundStats, ...] = ()
        self._round_left = float(case.memory_bytes)
        self._round_began_s = 0.0
        self._round_bytes = self._round_wire = 0.0
        self._round_looks = 0
        self._runs = True

    @property
    def best_rate(self) -> float:
        """The best one that was seen of the link; none can be, and so nothing is excused, while a limit holds."""
        is_limited = self._case.limit is not None and not self.watch.is_unlimited
        return math.inf if is_limited else link_rate(self.watch.samples).high

    @property
    def left_bytes(self) -> float:
        """What the target lacks of memory."""
        return self._cold + self._hot

    @property
    def left_on_wire(self) -> float:
        """What of it would cross the wire."""
        return self._cold * self._case.ratios[0] + self._hot * self._case.ratios[1]

    def go_on(self, step_s: float) -> None:
        """Time passes: the link carries, the guest writes."""
        limit = self._case.limit
        rate = rate_at(self._case, self.now_s)
        carries = (rate if limit is None or self.watch.is_unlimited else min(rate, limit.bytes_per_s)) * step_s
        disk = min(self._disk, carries / 2 if self._runs else carries)
        memory, wire = self._copy(carries - disk) if self._runs else (0.0, 0.0)
        self._disk -= disk
        clean = self._case.hot_bytes - self._hot
        if self._case.hot_bytes:
            self._hot += clean * (1 - math.exp(-self._case.written_bytes_s * step_s / self._case.hot_bytes))
        self._round_left -= memory
        self._round_bytes += memory
        self._round_wire += wire
        self.now_s += step_s
        if self._case.disk_bytes:
            done = self._case.disk_bytes - self._disk
            mirror = MirrorProgress(self._disk < 1, int(done), self._case.disk_bytes, int(done))
            self.watch = self.watch.mirrored(mirror, self.now_s)
        if self._runs and self._round_left > 0:
            sample = LinkSample(int(wire + disk), step_s, int(memory - wire))
            self.watch = self.watch.carried((sample,), RoundStats(0, sample.bytes, step_s, 1, sample.bytes_saved))
            self._round_looks += 1

    def _copy(self, wire_bytes: float) -> tuple[float, float]:
        """Send memory for so much of the link; returns its bytes, and those on the wire."""
        if self._case.ratios == (1.0, 1.0):
            memory = wire = min(wire_bytes, self._round_left)
            cold = min(memory * self._cold / self.left_bytes, self._cold) if self.left_bytes else 0.0
        else:
            cold_ratio, hot_ratio = self._case.ratios
            cold = min(self._cold, wire_bytes / cold_ratio, self._round_left)
            hot = min(self._hot, (wire_bytes - cold * cold_ratio) / hot_ratio, self._round_left - cold)
            memory, wire = cold + hot, cold * cold_ratio + hot * hot_ratio
        self._cold, self._hot = self._cold - cold, max(self._hot - (memory - cold), 0.0)
        return memory, wire

    def decide(self) -> CutDecision:
        """Look; begin a round or end one if it is time."""
        pages = math.ceil(self.left_bytes / PAGE_BYTES)
        if self._runs and self._round_left > 0:
            facts = self.watch.facts(self._plan, self._rounds, self.now_s, MemoryProgress(0, pages))
            decision = plan_cut(facts, self._plan.limits)
            if decision.lifts_limit:
                self.watch = self.watch.lifted()
            if decision.verdict is CutVerdict.ROUND:
                return decision
        if self._runs:
            length_s, saved = self.now_s - self._round_began_s, int(self._round_bytes - self._round_wire)
            stats = RoundStats(0, int(self._round_wire), length_s, pages, saved)
            self._rounds = (*self._rounds, stats)[-64:]
            if not self._round_looks:
                self.watch = self.watch.carried((), stats)
        decision = plan_cut(self.watch.facts(self._plan, self._rounds, self.now_s), self._plan.limits)
        if decision.lifts_limit:
            self.watch = self.watch.lifted()
        self._runs = decision.verdict is CutVerdict.ROUND or self._disk > 0
        self._round_left, self._round_bytes, self._round_began_s = self.left_bytes, 0.0, self.now_s
        self._round_wire = 0.0
        self._round_looks = 0
        return decision


def draw(rng: random.Random, *, steady: bool = False) -> Case:
    """A case; deadlines around what the oracle needs, so that most are close."""
    base = rng.choice([2, 10, 50, 125, 400, 1200]) * MIB * rng.uniform(0.5, 1.5)
    memory = int(base * rng.choice([0.2, 2.0, 10.0, 60.0]) * rng.uniform(0.5, 1.5))
    hot = int(memory * rng.choice([0.0, 0.01, 0.1, 0.5, 1.0]) * rng.random())
    spread = 1.0 if steady else rng.choice([1.0, 1.2, 2.0, 4.0])
    steps = tuple((rng.uniform(0.2, 10.0), base * rng.uniform(1 / spread, 1.0)) for _ in range(1 if spread == 1.0 else 40))
    disk = rng.choice([0, 0, int(memory * rng.uniform(0.1, 2.0))])
    case = Case(memory, hot, base * rng.choice([0.0, 0.1, 0.5, 0.9, 1.5, 5.0]), disk, steps, 0.0)
    return msgspec.structs.replace(case, deadline_s=oracle_end_s(case) * rng.uniform(0.7, 4.0) + rng.uniform(0.0, 8.0))


def limited(case: Case, rng: random.Random) -> Case:
    """The case under a bandwidth limit that was asked for, from a twentieth of the link to all of it."""
    limit = BandwidthLimit(int(case.link[0][1] * rng.uniform(0.05, 1.0)), is_default=rng.random() < 0.2)
    return msgspec.structs.replace(case, limit=limit)


def compressed(case: Case, rng: random.Random) -> Case:
    """The case with memory that shrinks on the wire, its hot part often less than its cold one, which is sent first; its deadline
    as close."""
    ratios = (rng.choice([0.1, 0.3, 0.6, 0.95]), rng.choice([0.1, 0.3, 0.6, 1.0]))
    shrunk = msgspec.structs.replace(case, ratios=ratios)
    sooner_s = case.deadline_s * oracle_end_s(shrunk) / oracle_end_s(case)
    return msgspec.structs.replace(shrunk, deadline_s=sooner_s + rng.uniform(0.0, 4.0))
