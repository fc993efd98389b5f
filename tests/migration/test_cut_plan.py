"""When to cut: dirty set, disk, deadline, mode."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from architect.migration import MirrorProgress, RoundStats
from architect.migration.cut_plan import CutDecision, CutFacts, CutVerdict, memory_rate, plan_cut
from architect.model.handover_state import MigrationMode
from architect.model.sizes import MIB
from tests.migration.handover_values import LIMITS, stats

READY = MirrorProgress(True, 100 * MIB, 100 * MIB)
HALF = MirrorProgress(False, 50 * MIB, 100 * MIB)


def decide(
    rounds: tuple[RoundStats, ...],
    mode: MigrationMode = MigrationMode.AUTO,
    mirror: MirrorProgress | None = READY,
    remaining_s: float | None = None,
    disk_rate: float = 10 * MIB,
    bulk_overdue: bool = False,
) -> CutDecision:
    return plan_cut(CutFacts(mode, rounds, mirror, disk_rate, remaining_s, bulk_overdue), LIMITS)


def test_a_dirty_set_that_fits_the_pause_is_cut() -> None:
    assert decide((stats(dirty_after=250),)) == CutDecision(CutVerdict.CUT)


def test_a_shrinking_dirty_set_gets_another_round() -> None:
    assert decide((stats(8000), stats(4000))).verdict is CutVerdict.ROUND


def test_a_dirty_set_that_does_not_shrink_is_cut_with_its_pause_in_precopy_mode() -> None:
    rounds = (stats(8000), stats(8000), stats(7900))
    assert decide(rounds, MigrationMode.PRECOPY) == CutDecision(CutVerdict.CUT)


def test_a_dirty_set_that_does_not_shrink_goes_postcopy_in_auto_mode_when_the_pause_would_be_long() -> None:
    assert decide((stats(8000), stats(8000), stats(7900))) == CutDecision(CutVerdict.CUT, postcopy=True)


def test_a_small_dirty_set_that_does_not_shrink_is_cut_without_postcopy() -> None:
    assert decide((stats(800), stats(800), stats(800))) == CutDecision(CutVerdict.CUT)


def test_rounds_end_even_if_every_one_shrinks() -> None:
    rounds = tuple(stats(1_000_000 // (index + 1)) for index in range(LIMITS.round_count_max))
    assert decide(rounds).verdict is CutVerdict.CUT


def test_a_mirror_that_is_not_ready_is_waited_for() -> None:
    assert decide((stats(10),), mirror=HALF).verdict is CutVerdict.WAIT


def test_postcopy_mode_cuts_before_anything_was_copied() -> None:
    assert decide((), MigrationMode.POSTCOPY, mirror=None) == CutDecision(CutVerdict.CUT, postcopy=True)


def test_the_deadline_cuts_now_and_leaves_the_rest_to_postcopy() -> None:
    decision = decide((stats(60_000),), remaining_s=LIMITS.notice_margin_s + 3.0)
    assert decision == CutDecision(CutVerdict.CUT, postcopy=True)


def test_the_deadline_turns_a_disk_that_cannot_be_ready_into_postcopy() -> None:
    decision = decide((stats(10),), mirror=HALF, disk_rate=1 * MIB, remaining_s=LIMITS.notice_margin_s + 1.1)
    assert decision == CutDecision(CutVerdict.CUT, postcopy=False, disk_postcopy=True)


def test_a_disk_that_is_mostly_holes_may_still_go_postcopy() -> None:
    sparse = MirrorProgress(False, 6 * 1024 * MIB, 8 * 1024 * MIB)
    decision = decide(
        (stats(10),), mirror=sparse, disk_rate=1024 * MIB, remaining_s=LIMITS.notice_margin_s + 8.1, bulk_overdue=True
    )
    assert decision == CutDecision(CutVerdict.CUT, postcopy=True, disk_postcopy=True)


def test_a_move_that_cannot_end_before_the_host_goes_is_refused_with_its_numbers() -> None:
    decision = decide((stats(250_000),), remaining_s=LIMITS.notice_margin_s + 3.0)
    assert decision.verdict is CutVerdict.REFUSE
    assert "before the host goes" in decision.reason and "MiB" in decision.reason


def test_precopy_mode_never_goes_postcopy_and_refuses_what_cannot_be_sent_in_time() -> None:
    refused = decide((stats(250_000),), MigrationMode.PRECOPY, remaining_s=LIMITS.notice_margin_s + 3.0)
    assert refused.verdict is CutVerdict.REFUSE
    in_time = decide((stats(60_000),), MigrationMode.PRECOPY, remaining_s=LIMITS.notice_margin_s + 3.0)
    assert in_time == CutDecision(CutVerdict.CUT)


def test_a_bulk_copy_that_takes_half_the_notice_is_cut_to_postcopy_if_the_rest_fits() -> None:
    unsent = RoundStats(0, 100 * MIB, 1.0, 25_600)
    decision = decide((unsent,), remaining_s=LIMITS.notice_margin_s + 2.0, bulk_overdue=True)
    assert decision == CutDecision(CutVerdict.CUT, postcopy=True)


def test_the_rate_is_that_of_the_best_round_long_enough_to_tell() -> None:
    assert memory_rate((stats(0), RoundStats(1, 4096, 0.1, 0))) == 100 * MIB


def test_without_any_traffic_the_rate_is_not_zero() -> None:
    assert memory_rate(()) > 0


@settings(deadline=None)
@given(
    mode=st.sampled_from([MigrationMode.AUTO, MigrationMode.PRECOPY]),
    dirty=st.lists(st.integers(0, 1 << 20), min_size=1, max_size=40),
    remaining_s=st.none() | st.floats(-10, 200),
    done_bytes=st.integers(0, 1 << 30),
    is_ready=st.booleans(),
    overdue=st.booleans(),
)
def test_every_decision_keeps_the_promises_of_its_mode(
    mode: MigrationMode, dirty: list[int], remaining_s: float | None, done_bytes: int, is_ready: bool, overdue: bool
) -> None:
    mirror = MirrorProgress(is_ready, done_bytes, 1 << 30)
    decision = decide(tuple(stats(d) for d in dirty), mode, mirror, remaining_s, bulk_overdue=overdue)
    if mode is MigrationMode.PRECOPY:
        assert not decision.postcopy and not decision.disk_postcopy
    if decision.verdict is CutVerdict.CUT:
        assert is_ready or decision.disk_postcopy
        if decision.postcopy and remaining_s is not None and not overdue and len(dirty) < LIMITS.round_count_max:
            left_s = dirty[-1] * 4096 / (100 * MIB)
            assert left_s > LIMITS.pause_tolerable_s
    assert (decision.verdict is CutVerdict.REFUSE) == bool(decision.reason)
    if remaining_s is None:
        assert decision.verdict is not CutVerdict.REFUSE or overdue
