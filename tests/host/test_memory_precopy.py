"""Moves by pre-copy between two memory processes, with a guest that writes all the time."""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from architect.silo.memory_role import MemoryRole
from architect.silo.rate_limit import BURST_S
from tests.host.memory_rig import ADDRESS, cut_over, pair, rig

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
            assert (await source.memory.serve_until_done()).root == cut.root  # nothing is left to serve
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


def test_a_moved_guest_finds_its_pages_in_its_page_table() -> None:
    async def move() -> None:
        async with pair(made) as (source, target):
            bulk = await source.memory.bulk()
            cut = await source.memory.cut(postcopy=False)
            await target.memory.apply_cut(cut.root, postcopy=False)
            assert target.guest.mapped_pages() >= bulk.pages
            target.guest.check()

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
            again = await target.memory.apply_cut(cut.root, postcopy=False)
            assert (again.root, again.pages_missing) == (applied.root, applied.pages_missing)
            assert (await target.memory.status()).state == "received"
            target.guest.check()
            assert (await target.memory.status()).zero_faults.count <= made.ram_bytes // 65536 + 100
            assert await target.memory.full_hash() == cut.root

    with rig() as made:
        asyncio.run(move())


def test_pages_of_all_streams_and_the_disk_together_keep_to_the_bandwidth() -> None:
    rate = 3 << 20
    data = bytes(2 << 20)

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def move() -> None:
        source = await made.host("alpha", MemoryRole.FRESH)
        source.guest.fill(10)
        target = await made.host("beta", MemoryRole.INCOMING)
        endpoint = await target.memory.open_target("secret", ADDRESS)
        await source.memory.open_source(made.source_options(endpoint.port, "secret", 3, bandwidth_bytes_s=rate))
        server = await asyncio.start_unix_server(swallow, made.folder / "server.sock", limit=1 << 22)
        await target.memory.tunnel_connect("disk", str(made.folder / "server.sock"))
        await source.memory.tunnel_listen("disk", str(made.folder / "client.sock"))

        async def write_disk() -> None:
            reader, writer = await asyncio.open_unix_connection(made.folder / "client.sock")
            writer.write(data)
            writer.write_eof()
            assert await reader.read() == b""
            writer.close()

        start_s = time.monotonic()
        bulk, _ = await asyncio.gather(source.memory.bulk(), write_disk())
        took_s = time.monotonic() - start_s
        tunnel = await source.memory.tunnel_close("disk")
        assert tunnel.sent == len(data)
        # No sooner than the rate allows; how much later is the machine's business.
        assert took_s >= (bulk.bytes_sent + tunnel.sent - tunnel.saved) / rate - BURST_S
        server.close()
        await source.memory.close()
        await target.memory.close()

    with rig() as made:
        asyncio.run(move())


def test_memory_and_disk_that_shrink_are_compressed_where_the_link_is_slow() -> None:
    text = b"a page of a guest that shrinks on its way, and comes out as it was\n" * 400_000

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while part := await reader.read(1 << 20):
            came.append(part)
        writer.close()

    async def move() -> None:
        source = await made.host("alpha", MemoryRole.FRESH)
        memfd = source.memory.memfd()
        os.pwrite(memfd, text, 8 << 20)
        os.close(memfd)
        target = await made.host("beta", MemoryRole.INCOMING)
        endpoint = await target.memory.open_target("secret", ADDRESS)
        await source.memory.open_source(made.source_options(endpoint.port, "secret", bandwidth_bytes_s=20 << 20))
        server = await asyncio.start_unix_server(swallow, made.folder / "server.sock")
        await target.memory.tunnel_connect("disk", str(made.folder / "server.sock"))
        await source.memory.tunnel_listen("disk", str(made.folder / "client.sock"))
        bulk = await source.memory.bulk()
        reader, writer = await asyncio.open_unix_connection(made.folder / "client.sock")
        writer.write(text)
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
        cut = await source.memory.cut(postcopy=False)
        await target.memory.apply_cut(cut.root, postcopy=False)
        assert cut.root == await source.memory.full_hash() == await target.memory.full_hash()
        assert b"".join(came) == text
        tunnel = await source.memory.tunnel_close("disk")
        assert min(bulk.bytes_saved, tunnel.saved) > len(text) / 2, (bulk, tunnel)
        assert bulk.bytes_sent + bulk.bytes_saved >= len(text) and tunnel.sent == len(text)
        server.close()
        await source.memory.close()
        await target.memory.close()

    came: list[bytes] = []
    with rig() as made:
        asyncio.run(move())
