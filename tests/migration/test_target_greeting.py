"""The target's greeting: what the destruction of the source's copy waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, cast

import pytest

from architect.migration.handover_plan import HandoverLimits
from architect.migration.span_recorder import SpanRecorder
from architect.migration.target_greeting import SILENT_GUEST_S, TargetGreeting
from architect.migration.target_ports import TargetPorts
from architect.model.handover_span import Side
from architect.testing.virtual_time import LoopClock, run_virtual

LIMITS = HandoverLimits()
ROUND_TRIP_S = 0.001


def takes(time_s: float, *, tells_when: bool = False) -> Callable[..., Coroutine[Any, Any, float | None]]:
    """A call that takes so long."""

    async def call(*_: object) -> float | None:
        await asyncio.sleep(time_s)
        return asyncio.get_running_loop().time() if tells_when else None

    return call


def released_after_s(*, first_packet_s: float, answer_s: float) -> float:
    """How long `release` takes where the guest sends and answers that long after its resume."""

    async def test() -> float:
        loop = asyncio.get_running_loop()
        ports = SimpleNamespace(
            edge=SimpleNamespace(steer=takes(ROUND_TRIP_S)),
            flows=SimpleNamespace(set_local=takes(0), wait_first_packet=takes(first_packet_s, tells_when=True)),
            machine=SimpleNamespace(sync_clock=takes(answer_s), run_hook=takes(0)),
        )
        clock = LoopClock()
        greeting = TargetGreeting(cast(TargetPorts, ports), clock, LIMITS, SpanRecorder(clock, Side.TARGET), "10.0.0.2", "10.0.0.1")
        start_s = loop.time()
        tasks = [asyncio.create_task(greeting.greet(3)), asyncio.create_task(greeting.watch_guest(start_s))]
        await greeting.release()
        took_s = loop.time() - start_s
        await asyncio.gather(*tasks)
        return took_s

    return run_virtual(test())


@pytest.mark.parametrize("slow_times", [0, 1, 5])
def test_a_guest_that_is_slow_to_take_the_time_is_told_it_until_it_has_taken_it(slow_times: int) -> None:
    taken: list[float] = []

    async def sync_clock() -> None:
        taken.append(0)
        await asyncio.sleep(60 if len(taken) <= slow_times else 0.01)

    async def test() -> None:
        ports = SimpleNamespace(
            edge=SimpleNamespace(steer=takes(0)),
            flows=SimpleNamespace(set_local=takes(0)),
            machine=SimpleNamespace(sync_clock=sync_clock, run_hook=takes(0)),
        )
        clock = LoopClock()
        greeting = TargetGreeting(cast(TargetPorts, ports), clock, LIMITS, SpanRecorder(clock, Side.TARGET), "10.0.0.2", "10.0.0.1")
        task = asyncio.create_task(greeting.greet(3))
        await greeting.release()
        await task

    run_virtual(test())
    assert len(taken) == slow_times + 1


def test_a_guest_that_sends_is_busy_until_it_has_answered_us() -> None:
    assert released_after_s(first_packet_s=0.09, answer_s=0.12) == pytest.approx(0.12 + ROUND_TRIP_S)
    assert released_after_s(first_packet_s=0.09, answer_s=1.0) == pytest.approx(LIMITS.seen_timeout_s)


def test_a_guest_that_answers_and_is_silent_is_given_a_moment_to_send() -> None:
    assert released_after_s(first_packet_s=3.0, answer_s=0.02) == pytest.approx(0.02 + ROUND_TRIP_S + SILENT_GUEST_S)


def test_a_guest_of_which_nothing_is_seen_is_waited_for_no_longer_than_the_limit() -> None:
    assert released_after_s(first_packet_s=3.0, answer_s=1.0) == pytest.approx(LIMITS.seen_timeout_s)
