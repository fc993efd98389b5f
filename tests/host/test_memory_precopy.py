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


def test_zeros_of_a_moved_guest_are_filled_extent_by_extent_and_cost_the_move_nothing() -> None:
    async def move() -> None:
        async with pair(made, fill=0) as (source, target):
            bulk = await source.memory.bulk()
            assert bulk.pages + bulk.zero_pages == made.ram_bytes // 4096
            assert bulk.bytes_sent < 100_000
            cut = await source.memory.cut(postcopy=False)
            applied = await target.memory.apply_cut(cut.root, postcopy=False)
            assert applied == await target.memory.apply_cut(cut.root, postcopy=False)
            assert (await target.memory.status()).state == "received"
            target.guest.check()
            assert (await target.memory.status()).zero_faults.count <= made.ram_bytes // 65536 + 100
            assert await target.memory.full_hash() == cut.root

    with rig() as made:
        asyncio.run(move())
