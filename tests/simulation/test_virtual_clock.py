"""The virtual loop: time jumps, order is kept, a stuck program is found."""

from __future__ import annotations

import asyncio

import pytest

from architect.testing.virtual_clock import DeadlockError, SeededEntropy, VirtualClock, VirtualLoop, run_virtual


def test_a_day_passes_at_once() -> None:
    async def main(loop: VirtualLoop) -> float:
        begin_s = loop.time()
        await VirtualClock(loop).sleep(86_400)
        return loop.time() - begin_s

    assert run_virtual(main) == 86_400


def test_timeouts_run_on_virtual_time() -> None:
    async def main(loop: VirtualLoop) -> float:
        begin_s = loop.time()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await asyncio.sleep(10)
        return loop.time() - begin_s

    assert run_virtual(main) == 5


def test_timers_fire_in_order_of_their_time() -> None:
    async def main(loop: VirtualLoop) -> list[int]:
        fired: list[int] = []
        for delay_s in (3, 1, 2):
            loop.call_later(delay_s, fired.append, delay_s)
        await asyncio.sleep(4)
        return fired

    assert run_virtual(main) == [1, 2, 3]


def test_a_program_in_which_everybody_waits_is_a_deadlock() -> None:
    async def main(loop: VirtualLoop) -> None:
        await asyncio.Event().wait()

    with pytest.raises(DeadlockError):
        run_virtual(main)


def test_entropy_is_a_function_of_its_seed() -> None:
    assert SeededEntropy(1).random_bytes(16) == SeededEntropy(1).random_bytes(16) != SeededEntropy(2).random_bytes(16)
