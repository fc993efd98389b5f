"""Disk tunnels between two memory processes, both ways."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from pathlib import Path

import pytest

from tests.host.memory_rig import Host, pair, rig

pytestmark = pytest.mark.host


async def _hash_server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Reads to the end of its input, answers the hash of it and then as many bytes as came; only a half-close makes it answer."""
    data = await reader.read()
    writer.write(hashlib.sha256(data).digest() + data)
    with contextlib.suppress(ConnectionError):
        await writer.drain()
    writer.close()


async def _echo_server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def _exchange(path: Path, data: bytes) -> None:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(data)
    await writer.drain()
    writer.write_eof()
    answer = await reader.read()
    assert answer == hashlib.sha256(data).digest() + data
    writer.close()


def _ends(made_source: Host, made_target: Host, listens_at: str) -> tuple[Host, Host]:
    return (made_source, made_target) if listens_at == "source" else (made_target, made_source)


@pytest.mark.parametrize("listens_at", ["source", "target"])
def test_a_tunnel_carries_many_connections_both_ways_with_half_close_and_counts_bytes(listens_at: str) -> None:
    async def carry() -> None:
        async with pair(made) as (source, target):
            listener, connector = _ends(source, target, listens_at)
            server_path, client_path = made.folder / "server.sock", made.folder / "client.sock"
            server = await asyncio.start_unix_server(_hash_server, server_path, limit=1 << 22)
            await connector.memory.tunnel_connect("disk", str(server_path))
            await listener.memory.tunnel_listen("disk", str(client_path))
            data = [os.urandom(size) for size in (0, 1, 70_000, 5_000_000, 3, 1_000_000)]
            async with asyncio.timeout(60):
                for one in data:
                    await _exchange(client_path, one)
                await asyncio.gather(*(_exchange(client_path, one) for one in data))
            size = 2 * sum(len(one) for one in data)
            carried = await listener.memory.tunnel_close("disk")
            assert (carried.sent, carried.received) == (size, size + 2 * 32 * len(data))
            server.close()

    with rig() as made:
        asyncio.run(carry())


def test_a_tunnel_carries_bulk_both_ways_at_once_without_a_deadlock() -> None:
    async def carry() -> None:
        async with pair(made) as (source, target):
            server_path, client_path = made.folder / "server.sock", made.folder / "client.sock"
            server = await asyncio.start_unix_server(_echo_server, server_path)
            await target.memory.tunnel_connect("disk", str(server_path))
            await source.memory.tunnel_listen("disk", str(client_path))
            reader, writer = await asyncio.open_unix_connection(client_path)
            data = os.urandom(32 << 20)

            async def send() -> None:
                writer.write(data)
                await writer.drain()
                writer.write_eof()

            async with asyncio.timeout(60):
                _, back = await asyncio.gather(send(), reader.read())
            assert back == data
            writer.close()
            server.close()

    with rig() as made:
        asyncio.run(carry())


def test_a_tunnel_that_the_peer_does_not_know_or_whose_server_is_gone_ends_the_clients_connection() -> None:
    async def carry() -> None:
        async with pair(made) as (source, target):
            client_path = made.folder / "client.sock"
            await source.memory.tunnel_listen("disk", str(client_path))
            reader, _ = await asyncio.open_unix_connection(client_path)
            async with asyncio.timeout(20):
                assert await reader.read() == b""
            await target.memory.tunnel_connect("disk", str(made.folder / "nobody.sock"))
            reader, _ = await asyncio.open_unix_connection(client_path)
            async with asyncio.timeout(20):
                with contextlib.suppress(ConnectionResetError):
                    assert await reader.read() == b""
            await source.memory.bulk()  # and the move is none the worse

    with rig() as made:
        asyncio.run(carry())


def test_a_killed_peer_ends_the_connections_of_its_tunnels() -> None:
    async def carry() -> None:
        async with pair(made) as (source, target):
            server_path, client_path = made.folder / "server.sock", made.folder / "client.sock"
            server = await asyncio.start_unix_server(_echo_server, server_path)
            await target.memory.tunnel_connect("disk", str(server_path))
            await source.memory.tunnel_listen("disk", str(client_path))
            reader, writer = await asyncio.open_unix_connection(client_path)
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            await target.kill_memory()
            async with asyncio.timeout(20):
                with contextlib.suppress(ConnectionResetError):
                    assert await reader.read() == b""
            server.close()

    with rig() as made:
        asyncio.run(carry())
