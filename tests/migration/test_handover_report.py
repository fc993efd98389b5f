"""What the source knows of the target's time, on its own clock."""

from __future__ import annotations

import msgspec
import pytest

from architect.migration.handover_report import SOURCE_SPANS_MAX, TARGET_SPANS_MAX, HandoverFigures
from architect.migration.source_engine import SourceState
from architect.model.handover_span import GUEST_RUNS, SPANS_MAX, Side, Span, Spans, TimedAway
from architect.runtime.clock import SystemClock
from architect.wire.agent_messages import MigrationReport
from architect.wire.migration_messages import Committed
from tests.migration.handover_values import plan

AHEAD_S = 5000.0


def figures() -> HandoverFigures:
    return HandoverFigures(plan(), SystemClock())


def test_what_the_target_did_is_told_on_the_sources_clock_with_the_bound_of_the_error() -> None:
    one = figures()
    start_s = one.plan.started_at_s
    one.target_clock.add(start_s + 1.0, start_s + 1.001 + AHEAD_S, start_s + 1.002)
    one.target_did([Span("load", Side.TARGET, start_s + 2.0 + AHEAD_S, start_s + 2.5 + AHEAD_S)])
    one.steered(TimedAway(start_s + 1.5, start_s + 1.6, 0.0004), "steer")
    report = one.report(SourceState(one.plan))
    times = {span.name: (round(span.start_s, 6), round(span.end_s, 6)) for span in report.spans}
    assert times == {"steer-applied": (1.5, 1.6), "load": (2.0, 2.5)}
    assert [phase.name for phase in report.phases] == ["target-load"]
    assert report.clock_error_ms == pytest.approx(1.0)


def test_spans_of_a_clock_that_was_never_compared_are_left_out() -> None:
    one = figures()
    one.target_did([Span("load", Side.TARGET, 1.0, 2.0)])
    report = one.report(SourceState(one.plan))
    assert (report.spans, report.clock_error_ms) == ((), None)


def test_the_pause_is_known_without_the_targets_clock() -> None:
    one = figures()
    now_s = one.clock.monotonic_s()
    one.stop_asked_at_s, one.stopped_at_s, one.stop_time_s = now_s - 0.040, now_s - 0.039, 100.0
    one.committed(Committed(2, 100.035, (Span("claim", Side.TARGET, 7.0, 7.01),)), now_s - 0.020, full_hash=False)
    assert one.downtime_s is not None and 0.03 < one.downtime_s < 0.041


@pytest.mark.parametrize("target_date_s", [100.0, 5000.0], ids=["clocks that agree", "clocks that do not"])
def test_an_answer_that_comes_long_after_the_guest_goes_on_is_no_part_of_the_pause(target_date_s: float) -> None:
    """A busy host: QEMU says that the guest runs 5 s after it does."""
    one = figures()
    now_s = one.clock.monotonic_s()
    one.stop_asked_at_s, one.stopped_at_s, one.stop_time_s = now_s - 5.040, now_s - 5.039, 100.0
    spans = (
        Span("claim", Side.TARGET, 7.0, 7.01),
        Span(GUEST_RUNS, Side.TARGET, 7.012, 12.012, "resume"),
        Span("resume", Side.TARGET, 7.01, 12.012),
    )
    one.committed(Committed(2, target_date_s + 0.035, spans), now_s - 5.020, full_hash=False)
    assert one.downtime_s is not None and 0.03 < one.downtime_s < 0.041


def test_a_move_that_undoes_for_hours_has_a_report_of_bounded_size() -> None:
    one = figures()
    one.target_clock.add(0.0, 0.0, 0.0)
    for _ in range(SPANS_MAX):
        with one.step("undo-resume"):
            pass
        one.target_did([Span("claim", Side.TARGET, 1.0, 2.0)])
    report = one.report(SourceState(one.plan))
    assert len(report.spans) == SOURCE_SPANS_MAX + TARGET_SPANS_MAX <= SPANS_MAX
    assert msgspec.json.decode(msgspec.json.encode(report), type=MigrationReport) == report


def test_a_report_of_before_there_were_spans_can_be_read() -> None:
    old = msgspec.to_builtins(figures().report(SourceState(plan())))
    for field in ("spans", "clock_error_ms", "clock_at_s"):
        del old[field]
    assert msgspec.convert(old, MigrationReport).spans == ()


@pytest.mark.parametrize(
    "garbage",
    [
        [{"name": "n" * 41, "side": "source", "start_s": 0, "end_s": 1}],
        [{"name": "load", "side": "moon", "start_s": 0, "end_s": 1}],
        [{"name": "load", "side": "target", "start_s": 0, "end_s": 1, "colour": "red"}],
        [{"name": "load", "side": "target", "start_s": 0}],
        [{"name": "load", "side": "target", "start_s": 0, "end_s": 1}] * (SPANS_MAX + 1),
    ],
)
def test_spans_that_are_none_are_refused(garbage: list[object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode(garbage), type=Spans)
