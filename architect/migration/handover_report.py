"""What a handover is reported as: its phases, its pause, its bytes.

The pause (`downtime_ms`) is STOP to RESUME by the timestamps of both QEMUs, if their difference is possible by the source's own
clock; two hosts' clocks may differ by more than a pause, and then it is what the source has seen, less half of the time that the
cut and its answer travelled. With `--verify` both sides hash all memory within the pause; that time is taken off, and `verified`
says that it was done.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from architect.migration.handover_plan import HandoverPlan
from architect.migration.source_engine import SourceState
from architect.model.handover_state import HandoverState, MigrationMode
from architect.model.sizes import PAGE_BYTES
from architect.runtime.clock import Clock
from architect.wire.agent_messages import MigrationReport, MoveDecision, Phase
from architect.wire.migration_messages import Committed

PHASES_MAX = 256


@dataclass
class HandoverFigures:
    """What was measured so far. `memory_bytes` crossed the wire for memory; the rest likewise."""

    plan: HandoverPlan
    clock: Clock
    phases: list[Phase] = field(default_factory=list)
    memory_bytes: int = 0
    disk_bytes: int = 0
    other_bytes: int = 0
    pages_left: int | None = None
    stop_asked_at_s: float = 0.0
    stopped_at_s: float = 0.0
    stop_time_s: float = 0.0
    verify_s: float = 0.0
    downtime_s: float = 0.0
    verified: bool | None = None
    progress: float = 0.0
    look: MoveDecision | None = None

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Record a phase around the block, whatever its end."""
        start_s = self.clock.monotonic_s()
        try:
            yield
        finally:
            self._add(name, start_s, self.clock.monotonic_s())

    def committed(self, answer: Committed, asked_at_s: float, full_hash: bool) -> None:
        """The target has answered the cut that was sent at `asked_at_s` (monotonic)."""
        sent_at_s = asked_at_s
        for part in answer.spent:
            self._add(f"target-{part.name}", asked_at_s, asked_at_s + part.duration_s)
            asked_at_s += part.duration_s
            self.verify_s += part.duration_s if part.name == "verify" else 0.0
        now_s = self.clock.monotonic_s()
        travel_s = max(now_s - sent_at_s - sum(part.duration_s for part in answer.spent), 0.0)
        pause_s = answer.resume_time_s - self.stop_time_s
        if not now_s - self.stopped_at_s - travel_s <= pause_s <= now_s - self.stop_asked_at_s:
            pause_s = now_s - self.stop_asked_at_s - travel_s / 2
        self.downtime_s = max(pause_s - self.verify_s, 0.0)
        self.verified = True if full_hash else None

    def report(self, state: SourceState) -> MigrationReport:
        """The handover as it stands."""
        plan, now_s = self.plan, self.clock.monotonic_s()
        sent = self.memory_bytes + self.disk_bytes + self.other_bytes
        return MigrationReport(
            id=plan.migration,
            vm=plan.vm,
            source=plan.host,
            target=plan.target.name,
            mode=MigrationMode.POSTCOPY if state.is_postcopy else MigrationMode.PRECOPY,
            state=state.outside,
            reason=state.reason if state.outside in (HandoverState.FAILED, HandoverState.LOST) else "",
            total_s=now_s - plan.started_at_s,
            downtime_ms=self.downtime_s * 1000,
            rounds=state.round_count,
            bytes_sent=sent,
            bytes_peer=sent,
            memory_bytes=plan.spec.machine.memory_bytes,
            disk_bytes_sent=self.disk_bytes,
            phases=tuple(self.phases),
            verified=self.verified,
            progress=self._progressed(state),
            decisions=state.decisions,
            look=self.look,
        )

    def _progressed(self, state: SourceState) -> float:
        """What a user sees only grows: a round, or a disk that joins, may make more to do."""
        self.progress = max(self.progress, self._progress(state))
        return self.progress

    def _progress(self, state: SourceState) -> float:
        if state.outside in (HandoverState.DONE, HandoverState.COMMITTED):
            return 1.0
        pages = self.plan.spec.machine.memory_bytes // PAGE_BYTES
        left = pages if self.pages_left is None else min(self.pages_left, pages)
        memory = 1 - left / pages if pages else 1.0
        if state.mirror is None or not state.mirror.total_bytes:
            return memory
        disk = state.mirror.done_bytes / state.mirror.total_bytes
        return (memory * pages * PAGE_BYTES + disk * state.mirror.total_bytes) / (pages * PAGE_BYTES + state.mirror.total_bytes)

    def _add(self, name: str, start_s: float, end_s: float) -> None:
        if len(self.phases) < PHASES_MAX:
            self.phases.append(Phase(name, start_s - self.plan.started_at_s, end_s - self.plan.started_at_s))
