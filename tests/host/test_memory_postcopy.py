"""Moves by post-copy: the guest runs at the target on pages that are still at the source."""

from __future__ import annotations

import asyncio

import pytest

from tests.host.memory_rig import cut_over, pair, rig

pytestmark = pytest.mark.host


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_a_guest_runs_on_pages_that_are_still_to_come_and_finds_none_stale_or_torn(rounds: int) -> None:
    async def move() -> None:
        async with pair(made) as (source, target):
            source.guest.run(0, 3000)
            if rounds:
                await source.memory.bulk()
            for _ in range(rounds - 1):
                await source.memory.round()
            if rounds == 3:
                await source.memory.announce()
            cut = await cut_over(source, target, postcopy=True)
            assert cut.pages_missing > 100
            target.guest.run(0, 3000)
            served = asyncio.create_task(source.memory.serve_until_done(60))
            applied = await target.memory.wait_all_present(60)
            assert applied.root == (await served).root == await source.memory.full_hash()
            target.guest.pause()
            target.guest.check()
            status = await target.memory.status()
            assert status.remote_faults.count > 0
            await source.memory.end_source()

    with rig() as made:
        asyncio.run(move())
