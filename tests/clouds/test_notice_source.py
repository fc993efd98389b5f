"""Every NoticeSource behaves alike, against servers that speak their cloud's protocol, and servers that do not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from architect.clouds.providers import open_notice_source
from architect.errors import UnavailableError, UsageError
from architect.model.notice import NoticeKind
from architect.model.times import parse_rfc3339
from architect.runtime.clock import SystemClock
from tests.clouds.metadata_fixture import (
    PROVIDERS,
    Proxy,
    board,
    first_of,
    later,
    posted,
    serving,
    serving_application,
    until,
    watcher,
)

every_provider = pytest.mark.parametrize("provider", PROVIDERS)
PATIENCE_S = 30


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test that must not hang."""

    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await test

    asyncio.run(bounded())


@every_provider
def test_a_notice_appears_and_is_withdrawn(provider: str) -> None:
    async def test() -> None:
        notices = board()
        async with serving(provider, notices) as url:
            source = watcher(provider, url)
            async with contextlib.aclosing(source.watch()) as changes:
                assert await anext(changes) is None
                assert source.remaining_s() is None
                wanted = posted(seconds=30)
                notices.post(wanted)
                notice = await anext(changes)
                assert notice is not None and notice.kind is NoticeKind.PREEMPTION
                assert abs(parse_rfc3339(notice.deadline) - parse_rfc3339(wanted.deadline)) <= 2
                remaining_s = source.remaining_s()
                assert remaining_s is not None and 20 < remaining_s <= 30
                notices.post(None)
                assert await anext(changes) is None
                assert source.health.failures == 0

    run(test())


@every_provider
def test_a_notice_that_stands_is_told_once(provider: str) -> None:
    async def test() -> None:
        notices = board()
        notices.post(posted())
        async with serving(provider, notices) as url:
            source = watcher(provider, url)
            async with contextlib.aclosing(source.watch()) as changes:
                first = await anext(changes)
                assert first is not None
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.5):
                        await anext(changes)

    run(test())


@every_provider
def test_another_watcher_reads_the_same_id(provider: str) -> None:
    async def test() -> None:
        notices = board()
        notices.post(posted())
        async with serving(provider, notices) as url:
            read = [await first_of(watcher(provider, url)) for _ in range(2)]
            assert read[0] is not None and read[1] is not None and read[0].id == read[1].id

    run(test())


@pytest.mark.parametrize("provider", ["aws", "azure"])
def test_a_changed_deadline_is_told(provider: str) -> None:
    async def test() -> None:
        notices = board()
        notice = posted(seconds=100)
        notices.post(notice)
        async with serving(provider, notices) as url:
            async with contextlib.aclosing(watcher(provider, url).watch()) as changes:
                first = await anext(changes)
                notices.post(later(notice, 20))
                second = await anext(changes)
                assert first is not None and second is not None
                assert parse_rfc3339(second.deadline) < parse_rfc3339(first.deadline) - 60

    run(test())


@every_provider
def test_acknowledging_may_be_repeated(provider: str) -> None:
    async def test() -> None:
        notices = board()
        taken: list[str] = []
        notices.acknowledged = taken.append
        notices.post(posted("event-1"))
        async with serving(provider, notices) as url:
            source = watcher(provider, url)
            await source.acknowledge("event-1")
            await source.acknowledge("event-1")
            await source.acknowledge("an-event-of-last-week")
            assert taken == (["event-1"] if provider == "azure" else [])
            async with contextlib.aclosing(source.watch()) as changes:
                assert await anext(changes) is not None

    run(test())


def test_an_azure_event_that_has_started_keeps_its_deadline() -> None:
    async def test() -> None:
        notices = board()
        notices.post(posted("event-1", seconds=100))
        async with serving("azure", notices) as url:
            source = watcher("azure", url)
            async with contextlib.aclosing(source.watch()) as changes:
                await anext(changes)
                await source.acknowledge("event-1")
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.3):
                        await anext(changes)
                remaining_s = source.remaining_s()
                assert remaining_s is not None and remaining_s > 60

    run(test())


async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Bytes that are no HTTP."""
    writer.write(b"\x00\xffSSH-2.0-not-http\r\n\r\n" * 3)
    await writer.drain()


async def nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Close at once."""


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Never answer."""
    await reader.read()


async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer too slowly to ever end."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    while not reader.at_eof():
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.05)


def saying(status: str, body: bytes, *headers: str) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """Answer anything with this."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", "Metadata-Flavor: Google", *headers]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await writer.drain()

    return answer


HOSTILE = {
    "garbage": garbage,
    "closes at once": nothing,
    "hangs": hang,
    "drips": drip,
    "503": saying("503 Service Unavailable", b"later"),
    "500": saying("500 Internal Server Error", b""),
    "401 for everything": saying("401 Unauthorized", b""),
    "403 for everything": saying("403 Forbidden", b""),
    "redirects": saying("302 Found", b"", "Location: http://127.0.0.1:1/"),
    "empty": saying("200 OK", b""),
    "half JSON": saying("200 OK", b'{"action": "terminate", "time'),
    "other JSON": saying("200 OK", b'{"action": 1, "time": null, "DocumentIncarnation": "x", "Events": {}}'),
    "no date": saying("200 OK", b'{"action": "terminate", "time": "soon", "DocumentIncarnation": 1, "Events": [{"EventId": 3}]}'),
    "huge": saying("200 OK", b"A" * (1 << 20)),
    "too short": saying("200 OK", b"", "Content-Encoding: gzip"),
    "endless header": saying("200 OK", b"", "X: " + "y" * 100_000),
}


@every_provider
@pytest.mark.parametrize("name", HOSTILE)
def test_a_server_that_misbehaves_is_survived_and_changes_nothing(provider: str, name: str) -> None:
    async def test() -> None:
        notices = board()
        async with serving(provider, notices) as target:
            proxy = Proxy(target)
            async with proxy.serving() as url:
                source = watcher(provider, url, timeout_s=0.3)
                async with contextlib.aclosing(source.watch()) as changes:
                    assert await anext(changes) is None
                    notices.post(posted())
                    notice = await anext(changes)
                    assert notice is not None
                    proxy.misbehaviour = HOSTILE[name]
                    proxy.break_connections()
                    notices.post(None)
                    withdrawn = asyncio.ensure_future(anext(changes))
                    await until(lambda: proxy.misbehaved >= 3 and source.health.failures >= 2)
                    assert not withdrawn.done(), "a server that fails withdraws no notice"
                    assert source.remaining_s() is not None
                    assert source.health.failing_since_s is not None and source.health.last_error
                    proxy.misbehaviour = None
                    assert await withdrawn is None
                    assert source.health.failures == 0 and source.health.failing_since_s is None

    run(test())


@every_provider
def test_nobody_there_is_survived(provider: str) -> None:
    async def test() -> None:
        source = watcher(provider, "http://127.0.0.1:1")
        async with contextlib.aclosing(source.watch()) as changes:
            reading = asyncio.ensure_future(anext(changes))
            await until(lambda: source.health.failures >= 3)
            assert not reading.done()
            reading.cancel()
            await asyncio.wait([reading])

    run(test())


def test_acknowledging_says_when_nobody_answers() -> None:
    async def test() -> None:
        with pytest.raises(UnavailableError):
            await watcher("azure", "http://127.0.0.1:1").acknowledge("event-1")

    run(test())


@every_provider
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(body=st.one_of(st.binary(max_size=200), st.text(max_size=100).map(str.encode)), status=st.sampled_from([200, 201, 204, 404]))
def test_no_answer_breaks_a_watcher(provider: str, body: bytes, status: int) -> None:
    async def test() -> None:
        async def answer(request: web.Request) -> web.Response:
            return web.Response(body=body, status=status, headers={"Metadata-Flavor": "Google", "ETag": "e"})

        application = web.Application()
        application.router.add_route("*", "/{path:.*}", answer)
        async with serving_application(application) as url:
            source = watcher(provider, url)
            async with contextlib.aclosing(source.watch()) as changes:
                reading = asyncio.ensure_future(anext(changes))
                await until(lambda: source.health.failures > 0 or reading.done())
                reading.cancel()
                await asyncio.wait([reading])

    run(test())


def test_a_provider_that_nobody_speaks_is_refused() -> None:
    with pytest.raises(UsageError):
        open_notice_source("oci", "http://127.0.0.1:1", "x", SystemClock())
