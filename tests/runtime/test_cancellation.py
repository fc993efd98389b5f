"""Cancellations that are neither lost nor too early."""

from __future__ import annotations

import asyncio
import threading

import pytest

from architect.runtime.cancellation import run_in_thread_to_end


def test_a_cancelled_wait_for_a_thread_ends_when_the_thread_does() -> None:
    begun, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        may_end.wait()
        ended.set()

    async def run() -> None:
        task = asyncio.create_task(run_in_thread_to_end(work))
        await asyncio.to_thread(begun.wait)
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=0.05)
        assert not done
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()

    asyncio.run(run())


def test_what_the_thread_returns_or_raises_is_passed_on() -> None:
    def refuse(word: str, *, loud: bool) -> str:
        if loud:
            raise ValueError(word)
        return word

    async def run() -> None:
        assert await run_in_thread_to_end(refuse, "no", loud=False) == "no"
        with pytest.raises(ValueError, match="no"):
            await run_in_thread_to_end(refuse, "no", loud=True)

    asyncio.run(run())
