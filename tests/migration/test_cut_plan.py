"""When to cut: dirty set, disk, deadline, mode."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from architect.migration import MirrorProgress, RoundStats
from architect.migration.copy_watch import CopyWatch
from architect.migration.cut_plan import CutDecision, CutFacts, CutVerdict, plan_cut
from architect.migration.link_rate import LinkRate, LinkSample
from architect.model.handover_state import MigrationMode
from architect.model.sizes import MIB
from tests.migration.handover_values import LIMITS, stats

READY = MirrorProgress(True, 100 * MIB, 100 * MIB)
HALF = MirrorProgress(False, 50 * MIB, 100 * MIB, 50 * MIB)
STEADY = LinkRate(100 * MIB, 100 * MIB, 100 * MIB, 10)
MARGIN_S = LIMITS.notice_margin_s


def decide(rounds: tuple[RoundStats, ...], mode: MigrationMode = MigrationMode.AUTO, **facts: Any) -> CutDecision:
    """The decision after these rounds, on a steady link of 100 MiB/s, with a disk that is ready."""
    left = rounds[-1].dirty_bytes if rounds else 0
    known: dict[str, Any] = {"link": STEADY, "bytes_left": left, "mirror": READY, "disk_rate": 10 * MIB} | facts
    return plan_cut(CutFacts(mode, rounds, **known), LIMITS)


def in_round(left_mib: int, **facts: Any) -> CutDecision:
    """The decision in the middle of the first round."""
    return decide((), is_running=True, bytes_left=left_mib * MIB, mirror=None, **facts)


def test_a_dirty_set_that_fits_the_pause_is_cut() -> None:
    decision = decide((stats(dirty_after=250),))
    assert (decision.verdict, decision.postcopy, decision.choice) == (CutVerdict.CUT, False, "cut")


def test_a_shrinking_dirty_set_gets_another_round() -> None:
    assert decide((stats(8000), stats(4000, duration_s=0.5))).verdict is CutVerdict.ROUND


def test_a_dirty_set_that_does_not_shrink_is_cut_with_its_pause_in_precopy_mode() -> None:
    decision = decide((stats(8000), stats(8000), stats(7900)), MigrationMode.PRECOPY)
    assert (decision.verdict, decision.postcopy) == (CutVerdict.CUT, False)


def test_a_dirty_set_that_does_not_shrink_goes_postcopy_in_auto_mode_when_the_pause_would_be_long() -> None:
    decision = decide((stats(8000), stats(8000), stats(7900)))
    assert (decision.verdict, decision.choice) == (CutVerdict.CUT, "cut, post-copy of memory")


def test_a_small_dirty_set_that_does_not_shrink_is_cut_without_postcopy() -> None:
    assert not decide((stats(800), stats(800), stats(800))).postcopy


def test_memory_written_faster_than_the_link_is_cut_after_two_rounds_and_says_so() -> None:
    decision = decide((stats(200_000), stats(100_000, duration_s=2.0)))
    assert decision.verdict is CutVerdict.CUT and decision.postcopy
    assert "written at 195.3 MiB/s, the link carries 100.0 MiB/s" in decision.why


def test_rounds_end_even_if_every_one_shrinks() -> None:
    rounds = tuple(stats(1_000_000 // (index + 1), duration_s=99.0) for index in range(LIMITS.round_count_max))
    assert decide(rounds).verdict is CutVerdict.CUT


def test_a_mirror_that_is_not_ready_is_waited_for() -> None:
    assert decide((stats(10),), mirror=HALF).verdict is CutVerdict.WAIT


def test_a_disk_written_as_fast_as_it_is_copied_goes_postcopy_in_auto_and_is_refused_in_precopy() -> None:
    late_s = LIMITS.mirror_stuck_s_max + 1
    auto = decide((stats(10),), mirror=HALF, mirror_stuck_s=late_s)
    assert (auto.verdict, auto.choice) == (CutVerdict.CUT, "cut, post-copy of disk")
    assert decide((stats(10),), MigrationMode.PRECOPY, mirror=HALF, mirror_stuck_s=late_s).verdict is CutVerdict.REFUSE


def test_postcopy_mode_cuts_before_anything_was_copied() -> None:
    decision = decide((), MigrationMode.POSTCOPY, mirror=None)
    assert (decision.verdict, decision.postcopy, decision.disk_postcopy) == (CutVerdict.CUT, True, False)


def test_a_running_round_goes_on_while_a_cut_at_the_next_look_would_still_do() -> None:
    need_s = LIMITS.doubt * 5.0 + LIMITS.poll_interval_s
    assert in_round(500, remaining_s=MARGIN_S + need_s + 0.1).verdict is CutVerdict.ROUND
    stopped = in_round(500, remaining_s=MARGIN_S + need_s - 0.1)
    assert (stopped.verdict, stopped.postcopy) == (CutVerdict.CUT, True)


def test_the_first_looks_stop_no_round_unless_the_host_goes_at_once() -> None:
    slow_start = LinkRate(1 * MIB, 1 * MIB, 1 * MIB, 2)
    assert in_round(500, remaining_s=20.0, link=slow_start).verdict is CutVerdict.ROUND
    assert in_round(500, remaining_s=0.5, link=slow_start).verdict is CutVerdict.REFUSE


def test_without_a_deadline_a_running_round_always_goes_on() -> None:
    assert in_round(100_000, link=LinkRate(1, 1, 1, 9)).verdict is CutVerdict.ROUND


def test_the_deadline_cuts_now_and_leaves_the_rest_to_postcopy() -> None:
    decision = decide((stats(60_000),), remaining_s=MARGIN_S + 3.0)
    assert (decision.verdict, decision.choice) == (CutVerdict.CUT, "cut, post-copy of memory")
    assert "the host goes in 6.0 s" in decision.why


def test_an_unsteady_link_is_left_earlier() -> None:
    unsteady = LinkRate(25 * MIB, 100 * MIB, 150 * MIB, 10)
    assert decide((stats(25_600),), remaining_s=MARGIN_S + 5.0).verdict is CutVerdict.ROUND
    assert decide((stats(25_600),), remaining_s=MARGIN_S + 5.0, link=unsteady).verdict is CutVerdict.CUT


def test_the_deadline_turns_a_disk_that_cannot_be_ready_into_postcopy() -> None:
    decision = decide((stats(10),), mirror=HALF, disk_rate=1 * MIB, remaining_s=MARGIN_S + 2.0)
    assert (decision.verdict, decision.choice) == (CutVerdict.CUT, "cut, post-copy of disk")


def test_a_mirror_that_ends_sooner_than_a_new_copy_is_waited_for_up_to_the_last_moment() -> None:
    nearly = MirrorProgress(False, 900 * MIB, 1000 * MIB, 900 * MIB)
    assert decide((stats(10),), mirror=nearly, disk_rate=50 * MIB, remaining_s=4.0).verdict is CutVerdict.WAIT


def test_memory_goes_on_beside_a_mirror_when_neither_a_new_copy_nor_one_after_the_other_would_be_in_time() -> None:
    nearly = MirrorProgress(False, 600 * MIB, 1000 * MIB, 600 * MIB)  # 4 s more at half of the link, a new copy 10
    facts: dict[str, Any] = {"mirror": nearly, "disk_rate": 50 * MIB, "remaining_s": 10.0}
    decision = decide((stats(25_600 * 4),), **facts)  # and 4 s of memory
    assert decision.verdict is CutVerdict.ROUND and "memory beside the disk's mirror" in decision.why
    assert decide((stats(10),), **facts | {"disk_rate": 41 * MIB, "remaining_s": 10.4}).verdict is CutVerdict.WAIT
    assert decide((), is_running=True, bytes_left=400 * MIB, **facts).verdict is CutVerdict.ROUND


def test_a_move_is_not_refused_while_its_mirror_may_still_be_in_time() -> None:
    nearly = MirrorProgress(False, 600 * MIB, 1000 * MIB, 600 * MIB)
    facts: dict[str, Any] = {"mirror": nearly, "disk_rate": 30 * MIB, "remaining_s": 4.0}  # 13 s by its pace, 4 by the link's
    hoped = decide((stats(10),), **facts)
    assert hoped.verdict is CutVerdict.WAIT and "with the disk's mirror" in hoped.why
    assert decide((stats(10),), **facts | {"remaining_s": 3.5}).verdict is CutVerdict.REFUSE


def test_a_rest_that_needs_a_little_more_than_the_best_rate_is_cut_in_hope() -> None:
    hoped = in_round(1000, remaining_s=9.5)
    assert (hoped.verdict, hoped.postcopy) == (CutVerdict.CUT, True) and "hoped for" in hoped.why
    assert in_round(1000, remaining_s=8.4).verdict is CutVerdict.REFUSE


def test_a_round_too_short_to_be_looked_at_tells_no_rate_while_a_disk_shares_the_link() -> None:
    known = CopyWatch().carried((LinkSample(100 * MIB, 1.0),), stats(0))
    short = stats(0, pages=2560, duration_s=0.2)
    assert known.carried((), short).samples[-1].bytes == 10 * MIB
    assert known.mirrored(HALF, 1.0).carried((), short).samples == known.samples
    assert known.mirrored(READY, 1.0).carried((), short).samples != known.samples


def test_a_disk_that_is_mostly_holes_may_still_go_postcopy() -> None:
    sparse = MirrorProgress(False, 6 * 1024 * MIB, 8 * 1024 * MIB, 60 * MIB)
    decision = decide((stats(10),), mirror=sparse, disk_rate=100 * MIB, remaining_s=MARGIN_S + 8.1)
    assert (decision.verdict, decision.disk_postcopy) == (CutVerdict.CUT, True)


def test_clusters_of_zeros_count_for_nothing_as_soon_as_the_mirror_has_begun() -> None:
    # A VM with 2 MiB of files on a disk of 8 GiB that was grown at its first start, on a link of 5 Mbit/s: as measured.
    slow = LinkRate(600_000.0, 600_000.0, 600_000.0, 10)
    begun = MirrorProgress(False, MIB, 132 * MIB, MIB)
    mirror = msgspec.structs.replace(begun, allocated_bytes=2_822_144)
    assert (begun.left_bytes, begun.whole_bytes) == (131 * MIB, 132 * MIB)
    assert (mirror.left_bytes, mirror.whole_bytes) == (2_822_144, 2_822_144)
    seen: dict[str, Any] = {"link": slow, "disk_rate": 300_000.0, "bytes_left": 10 * MIB, "remaining_s": 60.0}
    assert decide((), is_running=True, mirror=begun, **seen).verdict is CutVerdict.REFUSE
    assert decide((), is_running=True, mirror=mirror, **seen).verdict is CutVerdict.ROUND


def test_what_is_left_of_a_mirror_is_never_more_than_the_disk_takes_nor_less_than_its_share() -> None:
    untold = MirrorProgress(False, 100 * MIB, 140 * MIB, 0, 0, 3 * MIB)
    assert untold.left_bytes == 3 * MIB
    rewritten = MirrorProgress(False, 100 * MIB, 140 * MIB, 90 * MIB, 0, 80 * MIB)
    assert (rewritten.left_bytes, rewritten.whole_bytes) == (36 * MIB, 80 * MIB)
    only_zeros_so_far = MirrorProgress(False, 130 * MIB, 140 * MIB, 4096, 0, 9 * MIB)
    assert only_zeros_so_far.left_bytes == 9 * MIB - 4096
    assert msgspec.structs.replace(rewritten, is_ready=True).left_bytes == 0


def test_a_move_that_cannot_end_before_the_host_goes_is_refused_with_its_numbers() -> None:
    decision = decide((stats(250_000),), remaining_s=MARGIN_S + 3.0)
    assert decision.verdict is CutVerdict.REFUSE
    assert decision.why == ("post-copy cannot end before the host goes: 976.6 MiB are left, 100.0 MiB/s at best, 5.5 s")


def test_a_move_that_only_a_lucky_link_could_end_is_tried() -> None:
    hopeful = LinkRate(50 * MIB, 100 * MIB, 200 * MIB, 10)
    assert decide((stats(250_000),), remaining_s=MARGIN_S + 3.0, link=hopeful).verdict is CutVerdict.CUT


def test_precopy_mode_never_goes_postcopy_and_refuses_what_cannot_be_sent_in_time() -> None:
    assert decide((stats(250_000),), MigrationMode.PRECOPY, remaining_s=MARGIN_S + 3.0).verdict is CutVerdict.REFUSE
    in_time = decide((stats(60_000),), MigrationMode.PRECOPY, remaining_s=MARGIN_S + 3.0)
    assert (in_time.verdict, in_time.postcopy) == (CutVerdict.CUT, False)


@settings(deadline=None)
@given(
    mode=st.sampled_from([MigrationMode.AUTO, MigrationMode.PRECOPY]),
    dirty=st.lists(st.integers(0, 1 << 20), max_size=40),
    rates=st.lists(st.floats(1, 1e10), min_size=3, max_size=3),
    samples=st.integers(0, 20),
    remaining_s=st.none() | st.floats(-10, 200),
    done_bytes=st.integers(0, 1 << 30),
    is_ready=st.booleans(),
    running=st.booleans(),
)
def test_every_decision_keeps_the_promises_of_its_mode(
    mode: MigrationMode, dirty: list[int], rates: list[float], samples: int, remaining_s: float | None, done_bytes: int,
    is_ready: bool, running: bool,
) -> None:  # fmt: skip
    mirror = MirrorProgress(is_ready, done_bytes, 1 << 30, done_bytes)
    low, likely, high = sorted(rates)
    link = LinkRate(low, likely, high, samples)
    rounds = tuple(stats(d) for d in dirty) if not running else ()
    if not rounds and not running:
        return
    decision = decide(
        rounds, mode, mirror=mirror, remaining_s=remaining_s, link=link, is_running=running, bytes_left=4096 * sum(dirty)
    )
    assert decision.why
    if mode is MigrationMode.PRECOPY:
        assert not decision.postcopy and not decision.disk_postcopy
    if decision.verdict is CutVerdict.CUT:
        assert is_ready or decision.disk_postcopy
    if running:
        assert decision.verdict is not CutVerdict.WAIT
    if remaining_s is None:
        assert decision.verdict is not CutVerdict.REFUSE
        assert not running or decision.verdict is CutVerdict.ROUND
