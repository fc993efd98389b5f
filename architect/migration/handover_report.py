"""What a handover is reported as: its phases and spans, its pause, its bytes.

A phase is a step of the source, or of the target in the pause (`target-…`); a span is any step of anybody (`model.handover_span`).
What the target did is brought onto the source's clock by the newest offset that was measured, when the report is made.

The pause (`downtime_ms`) is STOP to RESUME by the timestamps of both QEMUs, if their difference is possible by the source's own
clock; two hosts' clocks may differ by more than a pause, and then it is what the source has seen, less half of the time that the
cut and its answer travelled, and less what the target spent after the guest ran: on a busy host QEMU's answer to `cont` comes
seconds after its guest goes on. With `--verify` both sides hash all memory within the pause; that time is taken off, and
`verified` says that it was done.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from architect.migration.handover_plan import HandoverPlan, MirrorProgress
from architect.migration.source_engine import SourceState
from architect.migration.span_recorder import SpanRecorder
from architect.migration.target_engine import TargetStep
from architect.model.handover_span import GUEST_RUNS, SPANS_MAX, Side, Span, TimedAway
from architect.model.handover_state import HandoverState, MigrationMode
from architect.model.sizes import PAGE_BYTES
from architect.runtime.clock import Clock
from architect.runtime.clock_offset import ClockOffset
from architect.wire.agent_messages import MigrationReport, MoveDecision, Phase
from architect.wire.migration_messages import Committed

SOURCE_SPANS_MAX = 160
TARGET_SPANS_MAX = 80
CONTROL_SPANS_MAX = SPANS_MAX - SOURCE_SPANS_MAX - TARGET_SPANS_MAX
_STEPS_IN_PAUSE = frozenset(
    step.value
    for step in (
        TargetStep.APPLY, TargetStep.VERIFY, TargetStep.ATTACH, TargetStep.LOAD, TargetStep.CLAIM, TargetStep.RESUME,
    )
)  # fmt: skip


@dataclass
class HandoverFigures:
    """What was measured so far. `memory_bytes` crossed the wire for memory, and compression kept `memory_saved` more off it; the
    rest likewise."""

    plan: HandoverPlan
    clock: Clock
    spans: SpanRecorder = field(init=False)
    target_clock: ClockOffset = field(default_factory=ClockOffset)
    target_spans: tuple[Span, ...] = ()
    edge_error_s: float = 0.0
    memory_bytes: int = 0
    memory_saved: int = 0
    disk_bytes: int = 0
    disk_saved: int = 0
    other_bytes: int = 0
    pages_left: int | None = None
    stop_asked_at_s: float = 0.0
    stopped_at_s: float = 0.0
    stop_time_s: float = 0.0
    verify_s: float = 0.0
    downtime_s: float | None = None
    verified: bool | None = None
    progress: float = 0.0
    look: MoveDecision | None = None

    def __post_init__(self) -> None:
        self.spans = SpanRecorder(self.clock, Side.SOURCE, SOURCE_SPANS_MAX)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Record a step of the source around the block, whatever its end."""
        with self.spans.span(name):
            yield

    def sent_memory(self, wire_bytes: int, saved_bytes: int) -> None:
        """So much of memory has crossed the wire so far. What is told late changes nothing."""
        if wire_bytes >= self.memory_bytes:
            self.memory_bytes, self.memory_saved = wire_bytes, saved_bytes

    def sent_disk(self, mirror: MirrorProgress) -> None:
        """The disk's mirror has come so far."""
        self.disk_bytes, self.disk_saved = mirror.sent_bytes - mirror.bytes_saved, mirror.bytes_saved

    def steered(self, times: TimedAway | None, parent: str) -> None:
        """The edge has steered the VM's packets."""
        if times is not None:
            self.spans.add("steer-applied", times.start_s, times.end_s, parent, Side.EDGE)
            self.edge_error_s = max(self.edge_error_s, times.error_s)

    def target_did(self, spans: Iterable[Span]) -> None:
        """What the target did, by its own clock; told once."""
        self.target_spans = (*self.target_spans, *spans)[:TARGET_SPANS_MAX]

    def committed(self, answer: Committed, asked_at_s: float, full_hash: bool) -> None:
        """The target has answered the cut that was sent at `asked_at_s` (monotonic)."""
        self.target_did(answer.spans)
        steps = [span for span in answer.spans if _is_in_pause(span)]
        self.verify_s += sum(step.end_s - step.start_s for step in steps if step.name == TargetStep.VERIFY.value)
        now_s = self.clock.monotonic_s()
        resume_s = sum(step.end_s - step.start_s for step in steps if step.name == TargetStep.RESUME.value)
        ran_s = sum(span.end_s - span.start_s for span in answer.spans if span.name == GUEST_RUNS and span.side is Side.TARGET)
        asked_s = sum(step.end_s - step.start_s for step in steps) - resume_s
        travel_s = max(now_s - asked_at_s - asked_s - resume_s, 0.0)
        pause_s = answer.resume_time_s - self.stop_time_s
        if not asked_at_s + asked_s - self.stopped_at_s <= pause_s <= now_s - self.stop_asked_at_s:
            pause_s = now_s - self.stop_asked_at_s - travel_s / 2 - ran_s
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
            downtime_ms=None if self.downtime_s is None else self.downtime_s * 1000,
            rounds=state.round_count,
            bytes_sent=sent,
            bytes_peer=sent,
            bytes_saved=self.memory_saved + self.disk_saved,
            memory_bytes=plan.spec.machine.memory_bytes,
            disk_bytes_sent=self.disk_bytes,
            phases=self._phases(),
            verified=self.verified,
            progress=self._progressed(state),
            decisions=state.decisions,
            look=self.look,
            spans=self._all_spans(),
            clock_error_ms=self._clock_error_ms(),
            clock_at_s=plan.started_at_s,
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

    def _all_spans(self) -> tuple[Span, ...]:
        """All spans, in seconds since the start of the handover, in the order in which they began."""
        source = [span.later(-self.plan.started_at_s) for span in self.spans.spans]
        return tuple(sorted([*source, *self._of_target()], key=lambda span: span.start_s))

    def _of_target(self) -> list[Span]:
        by_s = -self.target_clock.offset_s - self.plan.started_at_s
        return [span.later(by_s) for span in self.target_spans] if self.target_clock.is_known else []

    def _phases(self) -> tuple[Phase, ...]:
        source = [span.later(-self.plan.started_at_s) for span in self.spans.spans]
        steps = [(span.name, span) for span in source if not span.parent and span.side is Side.SOURCE]
        steps += [(f"target-{span.name}", span) for span in self._of_target() if _is_in_pause(span)]
        return tuple(Phase(name, span.start_s, span.end_s) for name, span in steps)

    def _clock_error_ms(self) -> float | None:
        if not self.target_clock.is_known or self.edge_error_s == float("inf"):
            return None
        return max(self.target_clock.error_s, self.edge_error_s) * 1000


def _is_in_pause(span: Span) -> bool:
    return span.side is Side.TARGET and not span.parent and span.name in _STEPS_IN_PAUSE
