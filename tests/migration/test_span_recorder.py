"""Recording spans."""

from __future__ import annotations

import pytest

from architect.migration.span_recorder import SpanRecorder
from architect.model.handover_span import Side
from architect.runtime.clock import SystemClock


def test_a_block_is_recorded_whatever_its_end() -> None:
    recorder = SpanRecorder(SystemClock(), Side.TARGET)
    with pytest.raises(ValueError, match="no"), recorder.span("load"):
        raise ValueError("no")
    (span,) = recorder.spans
    assert (span.name, span.side, span.parent) == ("load", Side.TARGET, "") and span.start_s <= span.end_s


def test_a_part_with_the_name_of_the_whole_is_not_recorded_twice() -> None:
    recorder = SpanRecorder(SystemClock(), Side.TARGET)
    with recorder.span("load"), recorder.span("load", "load"), recorder.span("hook", "load", Side.GUEST):
        pass
    assert [(span.name, span.parent) for span in recorder.spans] == [("hook", "load"), ("load", "")]


def test_no_more_are_kept_than_was_said() -> None:
    recorder = SpanRecorder(SystemClock(), Side.SOURCE, spans_max=3)
    for number in range(9):
        recorder.add(f"round-{number}", 0.0, 1.0)
    assert [span.name for span in recorder.spans] == ["round-0", "round-1", "round-2"]
