"""A target that does not hear its source: what it waits for, and what ends that."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from architect.errors import LostError, UnavailableError
from architect.migration.handover_plan import HandoverLimits
from architect.migration.source_watch import GoneWord, SourceWatch, Verdict, judge
from architect.migration.target_ports import TargetMemoryPort
from architect.model.ids import HostName
from architect.testing.virtual_time import LoopClock, run_virtual

LIMITS = HandoverLimits()
KEPT_S = LIMITS.status_hold_s
GONE = GoneWord("its provider has it no more", at_s=100.0)


class Memory:
    """A memory process whose source was heard last at `heard_s`; None: whenever it is asked."""

    heard_s: float | None = None
    is_away = False

    async def silent_s(self) -> float:
        if self.is_away:
            raise UnavailableError("memory process", "is away", "wait")
        return 0.0 if self.heard_s is None else asyncio.get_running_loop().time() - self.heard_s


class Watched:
    """A watch that runs, and what it tells."""

    def __init__(self) -> None:
        self.memory = Memory()
        self.told: list[str] = []
        self.watch = SourceWatch(
            "vm web", HostName("aws-1"), cast(TargetMemoryPort, self.memory), LoopClock(), LIMITS, self.told.append
        )

    def falls_silent(self) -> None:
        self.memory.heard_s = asyncio.get_running_loop().time()

    async def run(self, for_s: float) -> None:
        """Let it run for so long; raises what it raises."""
        try:
            async with asyncio.timeout(for_s):
                await self.watch.run()
        except TimeoutError:
            return


def test_silence_alone_is_waited_out_for_longer_than_a_source_keeps_anything() -> None:
    assert judge(LIMITS.silent_s_min - 1, None, 100.0, LIMITS) == Verdict(is_silent=False)
    for silent_s in (26.0, 61.0, KEPT_S, KEPT_S + LIMITS.silence_max_s):
        assert judge(silent_s, None, 100.0, LIMITS) == Verdict(is_silent=True)
    assert "has not been reached for 631 s" in judge(631, None, 100.0, LIMITS).lost_because


def test_a_host_that_is_said_to_be_gone_is_believed_gone_only_if_it_is_silent_here_too() -> None:
    assert judge(LIMITS.silent_s_min, GONE, 100.0, LIMITS).lost_because == "is gone: its provider has it no more"
    assert judge(LIMITS.silent_s_min - 1, GONE, 100.0, LIMITS) == Verdict(is_silent=False)


def test_the_word_that_a_host_is_gone_is_forgotten_when_it_is_not_repeated() -> None:
    assert judge(60, GONE, 100.0 + LIMITS.gone_word_s, LIMITS).lost_because
    assert not judge(60, GONE, 101.0 + LIMITS.gone_word_s, LIMITS).lost_because


def test_a_vm_waits_for_a_cut_link_and_users_are_told_once_from_when_on_and_when_it_is_over() -> None:
    async def test() -> None:
        watched = Watched()
        await watched.run(20)
        assert not watched.told
        watched.falls_silent()
        running = asyncio.create_task(watched.run(1000))
        await asyncio.sleep(KEPT_S)
        assert len(watched.told) == 1 and "host aws-1, which has not been reached since" in watched.told[0]
        watched.memory.heard_s = None
        await asyncio.sleep(2)
        assert watched.told[1:] == [""] and not running.done()
        running.cancel()

    run_virtual(test())


def test_a_vm_is_lost_at_once_when_the_host_that_it_does_not_reach_is_said_to_be_gone() -> None:
    async def test() -> None:
        watched = Watched()
        watched.falls_silent()
        running = asyncio.create_task(watched.run(1000))
        await asyncio.sleep(30)
        watched.watch.host_is_gone("its provider has it no more")
        await asyncio.sleep(LIMITS.source_look_s)
        with pytest.raises(LostError, match="still at host aws-1, which is gone: its provider has it no more"):
            await running
        assert watched.told[-1] == "", "what was said of it is taken back: the reason is another one now"

    run_virtual(test())


def test_a_vm_is_lost_when_its_source_has_not_been_reached_for_longer_than_it_keeps_anything() -> None:
    async def test() -> None:
        watched = Watched()
        watched.falls_silent()
        with pytest.raises(LostError, match="longer than it keeps anything"):
            await watched.run(KEPT_S + LIMITS.silence_max_s + 5)

    run_virtual(test())


def test_a_memory_process_that_cannot_say_is_no_reason_to_lose_the_vm() -> None:
    async def test() -> None:
        watched = Watched()
        watched.memory.is_away = True
        watched.watch.host_is_gone("its provider has it no more")
        await watched.run(5000)
        assert not watched.told

    run_virtual(test())
