"""Moves by pre-copy between two memory processes, with a guest that writes all the time."""

from __future__ import annotations

import asyncio

import pytest

from tests.host.memory_rig import cut_over, pair, rig

pytestmark = pytest.mark.host


@pytest.mark.parametrize("streams", [1, 3])
def test_a_guest_that_writes_all_the_time_arrives_without_a_stale_or_torn_page(streams: int) -> None:
    async def move() -> None:
        async with pair(made, streams) as (source, target):
            source.guest.run(0, 2000)
            bulk = await source.memory.bulk()
            assert bulk.pages > 8000
            assert bulk.zero_pages > 2000
            for _ in range(6):
                await source.memory.round()
            cut = await cut_over(source, target, postcopy=False)
            assert cut.root == await source.memory.full_hash()
            assert cut.root == await target.memory.full_hash()
            target.guest.check()
            target.guest.run(0, 2000)
            await asyncio.sleep(0.2)
            target.guest.pause()
            target.guest.check()
            await source.memory.end_source()
            await target.memory.abort_target()

    with rig() as made:
        asyncio.run(move())
