"""A bandwidth limit holds, and gives way to a deadline: as a rule, as a decision, and in a whole handover."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from architect.migration import MirrorProgress
from architect.migration.bandwidth_limit import LIFT_AHEAD_S, BandwidthLimit, chosen_limit, why_lifted
from architect.migration.cut_plan import CutFacts, CutVerdict, plan_cut
from architect.migration.link_rate import LinkRate, LinkSample, link_rate
from architect.migration.source_engine import Measured, SourceState, advance
from architect.migration.source_steps import SourceStep
from architect.model.handover_state import HandoverState, MigrationMode
from architect.model.sizes import MIB
from architect.wire.agent_messages import MigrationReport, MoveDecision
from tests.migration.handover_values import LIMITS, plan, stats
from tests.migration.test_handover import Fabric, play

LIMIT = BandwidthLimit(10 * MIB)
UNKNOWN = link_rate(())
SLOW = LinkRate(10 * MIB, 10 * MIB, 10 * MIB, 9)


def facts(left_mib: int, remaining_s: float | None, **changes: object) -> CutFacts:
    """In the middle of the first round, under the limit."""
    known = CutFacts(MigrationMode.AUTO, (), SLOW, left_mib * MIB, remaining_s=remaining_s, is_running=True, bandwidth=LIMIT)
    return msgspec.structs.replace(known, **changes)


@pytest.mark.parametrize(
    ("asked", "default", "limit"),
    [
        (None, 0, None),
        (None, 5, BandwidthLimit(5, is_default=True)),
        (7, 5, BandwidthLimit(7)),
        (0, 5, None),
    ],
)
def test_what_was_asked_for_goes_before_the_hosts_default(asked: int | None, default: int, limit: BandwidthLimit | None) -> None:
    assert chosen_limit(asked, default) == limit


@given(st.integers(0, 1 << 40), st.floats(1, 1e10))
def test_without_a_deadline_every_limit_holds(rest_bytes: int, rate: float) -> None:
    assert not why_lifted(LIMIT, rest_bytes, rate, None, LIMITS.doubt)
    assert not why_lifted(BandwidthLimit(1, is_default=True), rest_bytes, rate, None, LIMITS.doubt)


def test_a_default_gives_way_to_any_deadline() -> None:
    decision = plan_cut(facts(1, 3600.0, bandwidth=BandwidthLimit(10 * MIB, is_default=True)), LIMITS)
    assert (decision.verdict, decision.lifts_limit, decision.choice) == (CutVerdict.ROUND, True, "round, limit lifted")
    assert "default limit of 10.0 MiB/s" in decision.why


def test_a_limit_that_was_asked_for_is_lifted_when_twice_the_rest_would_not_fit_within_it() -> None:
    need_s = LIMITS.notice_margin_s + LIMITS.doubt * 10.0 + LIFT_AHEAD_S
    assert not plan_cut(facts(100, need_s + 0.1), LIMITS).lifts_limit
    lifted = plan_cut(facts(100, need_s - 0.1), LIMITS)
    assert lifted.lifts_limit and "100.0 MiB within 10.0 MiB/s" in lifted.why
    mirror = MirrorProgress(False, 50 * MIB, 100 * MIB, 50 * MIB)
    assert plan_cut(facts(51, need_s - 0.1, mirror=mirror, disk_rate=5 * MIB), LIMITS).lifts_limit


def test_before_anything_was_measured_the_limit_itself_is_the_rate() -> None:
    assert not plan_cut(facts(100, 60.0, link=UNKNOWN), LIMITS).lifts_limit
    assert plan_cut(facts(100, 20.0, link=UNKNOWN), LIMITS).lifts_limit


def test_a_move_under_a_limit_is_never_refused_for_what_the_limit_let_it_measure() -> None:
    hopeless = facts(1000, 8.0)
    assert plan_cut(msgspec.structs.replace(hopeless, bandwidth=None), LIMITS).verdict is CutVerdict.REFUSE
    assert plan_cut(hopeless, LIMITS).lifts_limit


def test_once_lifted_the_rates_that_were_seen_under_the_limit_are_forgotten_and_the_look_is_kept() -> None:
    state = SourceState(msgspec.structs.replace(plan(), bandwidth=LIMIT), SourceStep.BULK)
    state = advance(state, Measured(stats(25_600), None, (LinkSample(10 * MIB, 1.0),)), 1.0)
    assert state.watch.facts(state.plan, state.rounds, 1.0).bandwidth == LIMIT
    look = MoveDecision(1.5, 2, 0, 0, 0, 0, 0, 9.0, "round, limit lifted", "because")
    state = advance(msgspec.structs.replace(state, step=SourceStep.ROUND), Measured(stats(10), None, (), look), 2.0)
    assert state.watch.samples == () and state.watch.facts(state.plan, state.rounds, 2.0).bandwidth is None
    assert look in state.decisions


def test_a_decision_between_two_rounds_lifts_it_too() -> None:
    limited = msgspec.structs.replace(plan(deadline_at_s=20.0), bandwidth=LIMIT)
    state = advance(SourceState(limited, SourceStep.BULK), Measured(stats(25_600), None), 1.0)
    assert (state.step, state.watch.is_unlimited, state.decisions[-1].choice) == (SourceStep.ROUND, True, "round, limit lifted")


RATE = 5_000
"""The simulated VM has 64 KiB: 13 s under this limit, a moment without."""


async def moved(fabric: Fabric, deadline_s: float | None, mode: MigrationMode = MigrationMode.AUTO) -> MigrationReport:
    request = fabric.request(mode=mode)
    return await fabric.ask(msgspec.structs.replace(request, bandwidth_bytes_s=RATE, deadline_s=deadline_s))


def _precopy_s(report: MigrationReport) -> float:
    return sum(phase.end_s - phase.start_s for phase in report.phases if phase.name.startswith(("bulk", "round")))


def test_a_move_without_a_deadline_takes_the_time_that_its_limit_asks_for() -> None:
    async def test(fabric: Fabric) -> None:
        report = await moved(fabric, None)
        assert report.state is HandoverState.DONE
        assert report.memory_bytes / _precopy_s(report) <= RATE * 1.01
        assert not any("lifted" in decision.choice for decision in report.decisions)

    play(test)


def test_a_deadline_lifts_the_limit_in_the_middle_of_a_round_and_the_report_says_so() -> None:
    async def test(fabric: Fabric) -> None:
        report = await moved(fabric, 8.0)
        assert report.state is HandoverState.DONE and report.total_s < 8.0
        assert report.decisions[0].choice == "round, limit lifted"
        assert not report.decisions[-1].choice.startswith("cut, post-copy"), "there was time enough without the limit"

    play(test)


def test_a_default_limit_under_a_deadline_is_lifted_at_the_memory_process_even_if_no_round_lasts_until_a_look() -> None:
    async def test(fabric: Fabric) -> None:
        fabric.hosts["h1"].move_bandwidth_bytes_s = 1000 * RATE
        report = await fabric.ask(msgspec.structs.replace(fabric.request(), deadline_s=60.0))
        assert report.state is HandoverState.DONE
        calls = [event for event in fabric.world.trace if "memory.set-bandwidth" in event.text]
        assert len(calls) == 2, "set, and lifted"
        assert report.decisions[0].choice == "round, limit lifted" and "default" in report.decisions[0].why

    play(test)


def test_a_notice_that_comes_in_the_middle_of_a_limited_move_lifts_the_limit() -> None:
    async def test(fabric: Fabric) -> None:
        first = asyncio.create_task(moved(fabric, None))
        await asyncio.sleep(2.0)
        await moved(fabric, 6.0)
        report = await first
        assert report.state is HandoverState.DONE and report.total_s < 8.0
        assert any(decision.choice == "round, limit lifted" for decision in report.decisions)

    play(test)


def test_a_postcopy_with_a_deadline_is_not_held_back_and_one_without_is() -> None:
    async def hurried(fabric: Fabric) -> None:
        assert (await moved(fabric, 6.0, MigrationMode.POSTCOPY)).total_s < 6.0

    async def calm(fabric: Fabric) -> None:
        report = await moved(fabric, None, MigrationMode.POSTCOPY)
        assert report.total_s > report.memory_bytes / RATE

    play(hurried)
    play(calm)


def test_a_notice_that_comes_while_a_limited_postcopy_fills_lifts_the_limit() -> None:
    async def test(fabric: Fabric) -> None:
        first = asyncio.create_task(moved(fabric, None, MigrationMode.POSTCOPY))
        await asyncio.sleep(4.0)
        await moved(fabric, 6.0, MigrationMode.POSTCOPY)
        assert (await first).total_s < 8.0

    play(test)
