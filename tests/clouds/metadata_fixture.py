"""Metadata servers on this machine's loopback for tests, alone or behind a proxy that misbehaves."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
from aiohttp import web

from architect.clouds.aws.imds import ImdsReader
from architect.clouds.azure.scheduled_events import ScheduledEventsReader
from architect.clouds.gcp.metadata import MetadataReader
from architect.clouds.local.metadata import metadata_application, serve_on
from architect.clouds.local.notice_board import NoticeBoard
from architect.clouds.local.record import PostedNotice
from architect.clouds.notice_source import NoticeReader
from architect.clouds.notice_watcher import NoticeWatcher
from architect.model.notice import Notice, NoticeKind
from architect.model.times import rfc3339
from architect.runtime.clock import SystemClock

PROVIDERS = ("aws", "gcp", "azure")
INSTANCE = "vm-7"
Misbehaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class ImpatientClock(SystemClock):
    """Real time, but nobody sleeps for long."""

    async def sleep(self, duration_s: float) -> None:
        """A moment."""
        await asyncio.sleep(min(duration_s, 0.002))


def posted(notice_id: str = "notice-1", seconds: float = 60.0) -> PostedNotice:
    """A notice with a deadline that many seconds from now."""
    clock = SystemClock()
    return PostedNotice(
        id=notice_id,
        kind=NoticeKind.PREEMPTION,
        posted=rfc3339(clock.wall_s()),
        deadline=rfc3339(clock.wall_s() + seconds),
        deadline_monotonic_s=clock.monotonic_s() + seconds,
    )


def later(notice: PostedNotice, seconds: float) -> PostedNotice:
    """The same notice with another deadline."""
    return msgspec.structs.replace(notice, deadline=posted(seconds=seconds).deadline)


def watcher(provider: str, url: str, *, timeout_s: float = 2.0) -> NoticeWatcher:
    """The watcher of a provider, quick enough for tests."""
    clock = ImpatientClock()
    reader: NoticeReader
    match provider:
        case "aws":
            reader = ImdsReader(url, clock, timeout_s=timeout_s)
        case "gcp":
            reader = MetadataReader(url, hang_s=0.2, timeout_s=timeout_s)
        case _:
            reader = ScheduledEventsReader(url, INSTANCE, timeout_s=timeout_s, first_timeout_s=timeout_s)
    return NoticeWatcher(reader, clock)


def board() -> NoticeBoard:
    """An empty board of our instance."""
    return NoticeBoard(INSTANCE, "test-1")


@contextlib.asynccontextmanager
async def serving(provider: str, notices: NoticeBoard) -> AsyncIterator[str]:
    """The provider's server; yields its URL."""
    async with serving_application(metadata_application(provider, notices, SystemClock())) as url:
        yield url


@contextlib.asynccontextmanager
async def serving_application(application: web.Application) -> AsyncIterator[str]:
    """Any server; yields its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = await serve_on(application, listener)
    try:
        yield url
    finally:
        await server.close()


async def first_of(source: NoticeWatcher) -> Notice | None:
    """What the source says first."""
    async with contextlib.aclosing(source.watch()) as changes:
        return await anext(changes)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what nobody tells; the test's own deadline bounds it."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.002)


class Proxy:
    """Between a watcher and its server: passes everything on, or misbehaves."""

    def __init__(self, target: str) -> None:
        self._port = int(target.rpartition(":")[2])
        self.misbehaviour: Misbehaviour | None = None
        self.misbehaved = 0
        self._writers: set[asyncio.StreamWriter] = set()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Serve; yields the URL."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            self.break_connections()

    def break_connections(self) -> None:
        """End what is open."""
        for writer in list(self._writers):
            writer.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            if self.misbehaviour is not None:
                self.misbehaved += 1
                with contextlib.suppress(OSError):
                    await self.misbehaviour(reader, writer)
            else:
                upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self._port)
                self._writers.add(upstream_writer)
                await asyncio.gather(_pump(reader, upstream_writer), _pump(upstream_reader, writer))
        finally:
            writer.close()
            self._writers.discard(writer)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
