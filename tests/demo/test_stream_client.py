"""The demo's clients against each other on the loopback: what they count, and what they tell when a stream breaks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from architect.errors import PeerError, UnavailableError
from demo import datagram_client
from demo.checked_stream import StreamBrokenError
from demo.datagram_client import HEADER, DatagramClient
from demo.stream_client import OutsideServer, ServiceStatus, StreamClient, read_status
from demo.witnesses import Witnesses

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def test_a_stream_counts_both_ways_and_ends_when_told() -> None:
    async def run() -> None:
        server = OutsideServer()
        await server.start("127.0.0.1")
        client = StreamClient("s", "127.0.0.1", 5, 100_000, server.port)
        task = asyncio.create_task(client.run(asyncio.Event()))
        while client.report().bytes_confirmed < 5000 or client.report().bytes_verified < 5000:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        served = server.streams[0].report()
        assert served.error is None and served.bytes_verified >= 5000 and client.report().error is None
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await server.stop()

    asyncio.run(run())


async def with_server(handler: Handler, use: Callable[[int], Awaitable[None]]) -> None:
    """Run `use` with the port of a server that handles connections by `handler`."""
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    try:
        await use(server.sockets[0].getsockname()[1])
    finally:
        server.close()


def test_a_connection_that_closes_early_is_an_error_with_its_place() -> None:
    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(32)
        writer.close()

    async def use(port: int) -> None:
        client = StreamClient("s", "127.0.0.1", 5, 1000, port)
        with pytest.raises(StreamBrokenError, match="closed at byte 0"):
            await client.run(asyncio.Event())
        assert "closed" in str(client.report().error)

    asyncio.run(with_server(close, use))


def test_a_peer_that_sends_nonsense_is_an_error() -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10)
        await reader.read(-1)
        writer.close()

    async def status(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"nonsense")
        writer.close()

    async def use_status(port: int) -> None:
        with pytest.raises(PeerError):
            await read_status("127.0.0.1", port)

    async def only_stream(port: int) -> None:
        with pytest.raises(StreamBrokenError, match="a frame of kind"):
            await StreamClient("s", "127.0.0.1", 5, 1000, port).run(asyncio.Event())

    asyncio.run(with_server(babble, only_stream))
    asyncio.run(with_server(status, use_status))


def test_nobody_there_is_unavailable() -> None:
    with pytest.raises(UnavailableError, match="no connection"):
        asyncio.run(StreamClient("s", "127.0.0.1", 5, 1000, 1).run(asyncio.Event()))
    with pytest.raises(UnavailableError):
        asyncio.run(read_status("127.0.0.1", 1))


def test_silence_is_told_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("demo.stream_client.ANSWER_DEADLINE_S", 0.05)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)
        writer.close()

    async def use(port: int) -> None:
        with pytest.raises(UnavailableError, match=r"no answer in 0\.05 s; see"):
            await read_status("127.0.0.1", port)

    asyncio.run(with_server(silent, use))


def test_a_status_that_is_late_once_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0
    status = msgspec.convert(
        {name: "up" if name == "outside_state" else 0 for name in ServiceStatus.__struct_fields__}, ServiceStatus
    )

    async def late_once(address: str) -> ServiceStatus:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise UnavailableError(f"status of {address}", "no answer in 10 s", "see whether the VM runs")
        return status

    monkeypatch.setattr("demo.witnesses.read_status", late_once)
    monkeypatch.setattr("demo.witnesses.RETRY_S", 0.0)
    assert asyncio.run(Witnesses(OutsideServer()).status()) is status
    asked = 0
    with pytest.raises(UnavailableError):
        asyncio.run(Witnesses(OutsideServer()).status(deadline_s=0.0))


class Echo(asyncio.DatagramProtocol):
    """Sends back all but every fifth datagram; the seventh comes after the eighth, the ninth comes twice."""

    def __init__(self) -> None:
        self.held: tuple[bytes, tuple[str, int]] | None = None
        self.transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        assert self.transport is not None
        sequence = HEADER.unpack_from(data)[0]
        if sequence % 5 == 4:
            return
        if sequence == 7:
            self.held = (data, addr)
            return
        for _ in range(2 if sequence == 10 else 1):
            self.transport.sendto(data, addr)
        if self.held and sequence == 8:
            self.transport.sendto(*self.held)


def test_lost_late_and_doubled_datagrams_are_counted() -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
        client = DatagramClient("127.0.0.1", transport.get_extra_info("sockname")[1], rate_per_s=500)
        stop = asyncio.Event()
        task = asyncio.create_task(client.run(stop))
        while client.report().sent < 20:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        stop.set()
        report = await task
        transport.close()
        assert report.lost == report.sent // 5
        assert (report.reordered, report.duplicated) == (1, 1)
        assert report.received + report.lost == report.sent

    asyncio.run(run())


class SlowEcho(asyncio.DatagramProtocol):
    """Answers one datagram in each `pause_s`, as a busy guest does."""

    def __init__(self, pause_s: float) -> None:
        self._pause_s = pause_s
        self._free_s = 0.0
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: object) -> None:
        loop = asyncio.get_running_loop()
        self._free_s = max(self._free_s, loop.time()) + self._pause_s
        loop.call_at(self._free_s, self._transport.sendto, data, addr)


def test_the_last_answers_are_waited_for_as_long_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datagram_client, "_LAST_WAIT_S", 0.5)

    async def run() -> None:
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: SlowEcho(0.05), local_addr=("127.0.0.1", 0)
        )
        client = DatagramClient("127.0.0.1", transport.get_extra_info("sockname")[1], rate_per_s=500)
        stop = asyncio.Event()
        task = asyncio.create_task(client.run(stop))
        while client.report().sent < 20:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        stop.set()
        assert (await task).lost == 0
        transport.close()

    asyncio.run(run())
