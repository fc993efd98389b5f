"""The probe's arithmetic: silences, losses, and its own stalls."""

from __future__ import annotations

import pytest

from bench.gap_window import NOTED_MAX, GapWindow


def answered(window: GapWindow, *times_s: float) -> None:
    for time_s in times_s:
        window.received(window.sent(time_s), time_s)


def test_the_gap_is_the_longest_time_between_two_answers() -> None:
    window = GapWindow()
    answered(window, 10.0, 10.1, 10.5, 10.6)
    report = window.report(10.6)
    assert report.gap_ms == pytest.approx(400)
    assert (report.sent, report.received, report.lost) == (4, 4, 0)
    assert [(silence.end_s, round(silence.length_ms)) for silence in report.silences] == [(10.1, 100), (10.5, 400), (10.6, 100)]


def test_a_silence_that_lasts_counts() -> None:
    window = GapWindow()
    answered(window, 10.0)
    assert window.report(12.0).gap_ms == pytest.approx(2000)


def test_nothing_has_been_silent_before_the_first_answer() -> None:
    window = GapWindow()
    window.sent(10.0)
    assert window.report(10.5).gap_ms == 0


def test_a_datagram_is_lost_once_it_has_waited_too_long() -> None:
    window = GapWindow()
    window.sent(10.0)
    answered(window, 10.1)
    assert window.report(10.9).lost == 0
    report = window.report(11.5)
    assert (report.lost, report.lost_at_s) == (1, (10.0,))


def test_a_late_answer_is_no_loss() -> None:
    window = GapWindow()
    late = window.sent(10.0)
    window.received(late, 13.0)
    assert window.report(13.0).lost == 0


def test_a_new_window_forgets_all_but_the_last_answer() -> None:
    window = GapWindow()
    answered(window, 10.0, 15.0)
    window.sent(15.1)
    window.reset()
    answered(window, 15.2)
    report = window.report(20.0)
    assert (report.sent, report.received, report.lost) == (1, 1, 0)
    assert report.silences[0].length_ms == pytest.approx(200)


def test_an_answer_to_the_window_before_ends_a_silence_and_is_not_counted() -> None:
    window = GapWindow()
    answered(window, 10.0)
    before = window.sent(10.001)
    window.reset()
    window.received(before, 10.3)
    report = window.report(10.3)
    assert (report.received, round(report.gap_ms)) == (0, 300)


def test_a_pause_of_the_probe_is_no_silence_of_the_guest() -> None:
    window = GapWindow()
    answered(window, 10.0)
    window.sent(10.001)
    window.pause()
    answered(window, 60.0)
    report = window.report(60.0)
    assert (report.gap_ms, round(report.sender_stall_ms), report.lost) == (0, 1, 0)


def test_the_probe_reports_its_own_stalls() -> None:
    window = GapWindow()
    answered(window, 10.0, 10.001, 10.031)
    assert window.report(10.031).sender_stall_ms == pytest.approx(30)


def test_what_is_noted_is_bounded() -> None:
    window = GapWindow()
    answered(window, *(float(second) for second in range(200)))
    for second in range(200):
        window.sent(300.0 + second)
    report = window.report(1000.0)
    assert (len(report.silences), len(report.lost_at_s), report.lost) == (NOTED_MAX, NOTED_MAX, 200)
