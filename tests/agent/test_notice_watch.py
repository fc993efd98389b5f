"""The agent's ear at its cloud, with a cloud of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import cast

import msgspec

from architect.agent.notice_watch import NoticeWatch
from architect.clouds import NoticeSource
from architect.model.notice import Notice, NoticeKind

NOTICE = Notice("n-1", NoticeKind.PREEMPTION, "2026-01-01T00:00:30Z")


class Cloud:
    """Says what it is given."""

    def __init__(self) -> None:
        self.words: asyncio.Queue[Notice | None] = asyncio.Queue()

    async def watch(self) -> AsyncGenerator[Notice | None, None]:
        while True:
            yield await self.words.get()


def test_what_the_cloud_says_is_unset_until_it_was_heard_and_then_told_at_every_change() -> None:
    async def test() -> None:
        cloud, heard = Cloud(), asyncio.Semaphore(0)
        watch = NoticeWatch(lambda: cast(NoticeSource, cloud), heard.release)
        task = asyncio.create_task(watch.run())
        await asyncio.sleep(0)
        told: list[Notice | msgspec.UnsetType | None] = [watch.notice]
        for word in (None, NOTICE, None):
            cloud.words.put_nowait(word)
            await heard.acquire()
            told.append(watch.notice)
        assert told == [msgspec.UNSET, None, NOTICE, None]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(test())
