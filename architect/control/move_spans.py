"""What the control plane did for a move, as spans on the clock of the move's source: notice, plan, order.

The source's monotonic clock is compared with our wall clock by a few exchanges when its agent has first answered; a control plane
that was restarted in the middle of a move says nothing of what it did before.
"""

from __future__ import annotations

import msgspec

from architect.control.fabric import Fabric
from architect.control.records import EventKind, MigrationRecord, MoveCause
from architect.errors import ArchitectError
from architect.model.handover_span import SPANS_MAX, Side, Span
from architect.model.ids import HostName
from architect.runtime.clock_offset import ClockOffset
from architect.wire.agent_messages import ClockIs, MigrationReport, ReadClock

EXCHANGES = 4
TIMEOUT_S = 1.0


async def compare_clocks(fabric: Fabric, host: HostName) -> ClockOffset:
    """How far the host's monotonic clock is from our wall clock; not known if it does not answer."""
    offset = ClockOffset()
    for _ in range(EXCHANGES):
        asked_at_s = fabric.clock.wall_s()
        try:
            answer = await fabric.fleet.call(host, ReadClock(), timeout_s=TIMEOUT_S)
        except ArchitectError:
            break
        if isinstance(answer, ClockIs):
            offset.add(asked_at_s, answer.now_s, fabric.clock.wall_s())
    return offset


def control_spans(
    fabric: Fabric, record: MigrationRecord, ordered_at_s: float, clock: ClockOffset, report: MigrationReport
) -> tuple[Span, ...]:
    """Notice (if that is why), plan and order of a move, on the clock of its report. `ordered_at_s` is wall time."""
    if not clock.is_known:
        return ()
    start_s = clock.ours(report.clock_at_s)
    marks = [("plan", record.started_at_s, ordered_at_s), ("order", ordered_at_s, max(start_s, ordered_at_s))]
    if record.cause is MoveCause.NOTICE and (noticed_at_s := _noticed_at_s(fabric, record)) is not None:
        marks.insert(0, ("notice", noticed_at_s, record.started_at_s))
    return tuple(Span(name, Side.CONTROL, begin_s - start_s, end_s - start_s) for name, begin_s, end_s in marks)


def _noticed_at_s(fabric: Fabric, record: MigrationRecord) -> float | None:
    """When the notice of the move's source was taken over."""
    for event in reversed(fabric.book.events):
        if event.kind is EventKind.NOTICE and event.host == record.source and event.time_s <= record.started_at_s:
            return event.time_s
    return None


def joined(before: MigrationReport | None, after: MigrationReport) -> MigrationReport:
    """The report with what only the one before it knows: our spans, unless it has its own, and the pause, which an agent that was
    started again has not seen.
    """
    if after.downtime_ms is None and before is not None:
        after = msgspec.structs.replace(after, downtime_ms=before.downtime_ms)
    if any(span.side is Side.CONTROL for span in after.spans):
        return after
    ours = [span for span in before.spans if span.side is Side.CONTROL] if before is not None else []
    return with_spans(after, tuple(ours))


def with_spans(report: MigrationReport, ours: tuple[Span, ...]) -> MigrationReport:
    """The report with these spans of ours instead of those that it has."""
    theirs = [span for span in report.spans if span.side is not Side.CONTROL]
    spans = sorted([*ours, *theirs[: SPANS_MAX - len(ours)]], key=lambda span: span.start_s)
    return msgspec.structs.replace(report, spans=tuple(spans))
