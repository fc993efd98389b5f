"""Calls over a connection: answers, streams, errors, cancellation, and the end of the connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from architect.errors import ConflictError, InternalError, OutcomeUnknownError, UnavailableError
from architect.model.ids import VmId
from architect.runtime.certificates import make_ca, make_certificate
from architect.runtime.rpc import Call, Channel, Handler, open_channel
from architect.runtime.tls import client_context, san_name, server_context
from architect.wire.agent_messages import AgentMessage, Done, Progress, RemoveVm, StopVm
from architect.wire.call import ITEMS_IN_FLIGHT_MAX

STOP = StopVm(VmId("vm-1"), 1.0)


@asynccontextmanager
async def connected(tmp_path: Path, handler: Handler) -> AsyncIterator[tuple[Channel, Channel]]:
    """A client and the server's end of its connection, both running."""
    path = str(tmp_path / "s")
    accepted: asyncio.Future[Channel] = asyncio.get_running_loop().create_future()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        channel = Channel(reader, writer, AgentMessage, handler, "the client")
        accepted.set_result(channel)
        await channel.run()

    server = await asyncio.start_unix_server(accept, path)
    client = await open_channel(path, AgentMessage, None, "the server")
    async with asyncio.TaskGroup() as group:
        running = group.create_task(client.run())
        try:
            yield client, await accepted
        finally:
            client.close()
            await running
            server.close()


def against(tmp_path: Path, handler: Handler, check: Callable[[Channel, Channel], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(20), connected(tmp_path, handler) as (client, server):
            await check(client, server)

    asyncio.run(main())


def test_a_call_is_answered_with_message_and_body(tmp_path: Path) -> None:
    async def handler(message: Any, body: bytes, call: Call | None) -> Any:
        assert message == STOP
        return Done(), body * 2

    async def check(client: Channel, server: Channel) -> None:
        body = b"x" * 300_000
        assert await client.call_with_body(STOP, body, timeout_s=5) == (Done(), body * 2)

    against(tmp_path, handler, check)


def test_a_stream_yields_its_items_in_order_and_then_the_answer(tmp_path: Path) -> None:
    async def handler(message: Any, body: bytes, call: Call | None) -> Any:
        assert call is not None
        for number in range(2000):
            await call.item(Progress(str(number)), b"b")
        return Done()

    async def check(client: Channel, server: Channel) -> None:
        items = [item async for item in client.stream(STOP)]
        assert items == [(Progress(str(number)), b"b") for number in range(2000)] + [(Done(), b"")]

    against(tmp_path, handler, check)


def test_errors_keep_their_branch_and_words_and_defects_are_internal(tmp_path: Path) -> None:
    async def handler(message: Any, body: bytes, call: Call | None) -> Any:
        if isinstance(message, StopVm):
            raise ConflictError("vm x", "it moves", "wait")
        raise ZeroDivisionError("oops")

    async def check(client: Channel, server: Channel) -> None:
        with pytest.raises(ConflictError, match="vm x: it moves; wait"):
            await client.call(STOP, timeout_s=5)
        with pytest.raises(InternalError, match="ZeroDivisionError: oops"):
            await client.call(RemoveVm(VmId("v")), timeout_s=5)

    against(tmp_path, handler, check)


def test_a_call_without_an_answer_in_time_has_an_unknown_outcome_and_is_cancelled_at_the_server(tmp_path: Path) -> None:
    cancelled = asyncio.Event()

    async def handler(message: Any, body: bytes, call: Call | None) -> Any:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def check(client: Channel, server: Channel) -> None:
        with pytest.raises(OutcomeUnknownError):
            await client.call(STOP, timeout_s=0.01)
        await cancelled.wait()

    against(tmp_path, handler, check)


def test_open_calls_and_streams_fail_when_the_connection_ends(tmp_path: Path) -> None:
    started = asyncio.Event()

    async def handler(message: Any, body: bytes, call: Call | None) -> Any:
        started.set()
        await asyncio.Event().wait()

    async def check(client: Channel, server: Channel) -> None:
        async def consume() -> None:
            async for _ in client.stream(STOP):
                pass

        call = asyncio.create_task(client.call(STOP, timeout_s=None))
        stream = asyncio.create_task(consume())
        await started.wait()
        server.close()
        for task in (call, stream):
            with pytest.raises(OutcomeUnknownError):
                await task
        with pytest.raises(UnavailableError):
            await client.call(STOP, timeout_s=1)

    against(tmp_path, handler, check)


def test_garbage_ends_the_connection_and_harms_nobody_else(tmp_path: Path) -> None:
    async def handler(message: Any, body: bytes, call: Call | None) -> Any:
        return Done()

    async def check(client: Channel, server: Channel) -> None:
        assert await client.call(STOP, timeout_s=5) == Done()

    against(tmp_path, handler, check)

    async def garbage() -> None:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with pytest.raises(Exception, match="sent a frame of"):
                await Channel(reader, writer, AgentMessage, handler, "peer").run()
            done.set()

        done = asyncio.Event()
        server = await asyncio.start_unix_server(accept, str(tmp_path / "g"))
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "g"))
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert await reader.read() == b""
        await done.wait()
        server.close()

    asyncio.run(garbage())


def test_tls_asks_both_sides_for_a_certificate_of_the_same_fabric(tmp_path: Path) -> None:
    for fabric in ("one", "two"):
        make_ca(tmp_path / fabric)
        make_certificate(tmp_path / fabric, tmp_path / f"{fabric}-agent", "agent:aws-1")
        make_certificate(tmp_path / fabric, tmp_path / f"{fabric}-control", "control")

    async def main() -> None:
        async def handler(message: Any, body: bytes, call: Call | None) -> Any:
            return Done()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await Channel(reader, writer, AgentMessage, handler, "client").run()

        server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=server_context(tmp_path / "one-control"))
        port = server.sockets[0].getsockname()[1]

        async def ask(folder: str, name: str) -> Any:
            context = client_context(tmp_path / folder)
            channel = await open_channel(
                ("127.0.0.1", port), AgentMessage, None, "control", tls=context, server_name=san_name(name)
            )
            async with asyncio.TaskGroup() as group:
                group.create_task(channel.run())
                try:
                    return await channel.call(STOP, timeout_s=5)
                finally:
                    channel.close()

        assert await ask("one-agent", "control") == Done()
        with pytest.raises(UnavailableError):  # the name does not fit the certificate
            await ask("one-agent", "edge:edge-1")
        with pytest.raises((UnavailableError, ExceptionGroup)):  # another fabric's certificate
            await ask("two-agent", "control")
        server.close()

    asyncio.run(main())


def test_a_reader_that_takes_nothing_holds_up_no_other_call(tmp_path: Path) -> None:
    sent = 0

    async def handler(message: Any, body: bytes, call: Call | None) -> Any:
        nonlocal sent
        assert call is not None
        if isinstance(message, RemoveVm):
            return Done()
        for number in range(10 * ITEMS_IN_FLIGHT_MAX):
            await call.item(Progress(str(number)))
            sent += 1
        return Done()

    async def check(client: Channel, server: Channel) -> None:
        stream = client.stream(STOP)
        assert (await anext(stream))[0] == Progress("0")
        while sent < ITEMS_IN_FLIGHT_MAX:
            await client.call(RemoveVm(VmId("vm-1")), timeout_s=5)
        for _ in range(10):
            await client.call(RemoveVm(VmId("vm-1")), timeout_s=5)
        assert sent == ITEMS_IN_FLIGHT_MAX
        rest = [message async for message, _ in stream]
        assert len(rest) == 10 * ITEMS_IN_FLIGHT_MAX and rest[-1] == Done()

    against(tmp_path, handler, check)


def test_items_that_a_plain_call_ignores_do_not_stop_it(tmp_path: Path) -> None:
    async def handler(message: Any, body: bytes, call: Call | None) -> Any:
        assert call is not None
        for number in range(10 * ITEMS_IN_FLIGHT_MAX):
            await call.item(Progress(str(number)))
        return Done()

    async def check(client: Channel, server: Channel) -> None:
        assert await client.call(STOP, timeout_s=10) == Done()

    against(tmp_path, handler, check)
