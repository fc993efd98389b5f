"""QMP against a monitor that is late, silent, broken or refuses: each has its own typed error."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from architect.drafter.pinning import PinnedMemoryError
from architect.drafter.qmp import QmpConnection, QmpRefusedError, connect_qmp, listening_socket
from architect.errors import OutcomeUnknownError, PeerError, UnavailableError

GREETING: dict[str, Any] = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": ""}, "capabilities": []}}
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def line(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\r\n"


async def read_command(reader: asyncio.StreamReader) -> dict[str, Any] | None:
    """The next command; they are not told apart by newlines."""
    text = ""
    while part := await reader.read(1):
        text += part.decode()
        with contextlib.suppress(ValueError):
            command: dict[str, Any] = json.loads(text)
            return command
    return None


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(line(GREETING))
    request = await read_command(reader)
    assert request is not None
    writer.write(line({"return": {}} | ({"id": request["id"]} if "id" in request else {})))


def monitor(answer: Callable[[dict[str, Any], asyncio.StreamWriter], None]) -> Serve:
    """A monitor that greets and then lets `answer` deal with each command."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await greet(reader, writer)
        while request := await read_command(reader):
            answer(request, writer)

    return serve


@contextlib.asynccontextmanager
async def serving(path: Path, serve: Serve) -> AsyncIterator[Path]:
    async def quietly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await serve(reader, writer)
        writer.close()

    async with await asyncio.start_unix_server(quietly, sock=listening_socket(path)):
        yield path


def with_monitor(path: Path, serve: Serve, use: Callable[[QmpConnection], Awaitable[None]]) -> None:
    async def scenario() -> None:
        async with serving(path, serve):
            qmp = await connect_qmp(path, "vm-1", os.getpid(), 2)
            try:
                await use(qmp)
            finally:
                await qmp.close()

    asyncio.run(scenario())


def echo(request: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    writer.write(line({"return": request.get("arguments", {}), "id": request["id"]}))


def test_a_command_returns_its_value_and_the_greeting_has_the_version(tmp_path: Path) -> None:
    async def use(qmp: QmpConnection) -> None:
        assert await qmp.execute("any", {"a": 1}) == {"a": 1}
        assert qmp.qemu_version == "7.2.22"

    with_monitor(tmp_path / "qmp", monitor(echo), use)


def test_a_refusal_names_vm_command_and_qemus_words(tmp_path: Path) -> None:
    def refuse(request: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(line({"error": {"class": "GenericError", "desc": "no such\nthing"}, "id": request["id"]}))

    async def use(qmp: QmpConnection) -> None:
        with pytest.raises(QmpRefusedError, match="vm-1: QMP cont: no such thing") as caught:
            await qmp.execute("cont")
        assert caught.value.description == "no such\nthing"

    with_monitor(tmp_path / "qmp", monitor(refuse), use)


def test_no_answer_in_time_leaves_the_outcome_unknown_and_the_connection_usable(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    late: list[dict[str, Any]] = []

    def answer_late(request: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        late.append(request)
        if len(late) > 1:
            for waiting in late:
                echo(waiting, writer)

    async def use(qmp: QmpConnection) -> None:
        with pytest.raises(OutcomeUnknownError):
            await qmp.execute("first", {"n": 1}, timeout_s=0.05)
        assert await qmp.execute("second", {"n": 2}) == {"n": 2}

    with_monitor(tmp_path / "qmp", monitor(answer_late), use)
    assert "QMP first: no answer in 0.05 s; QEMU's threads: python: " in caplog.text


def test_a_monitor_that_goes_away_under_a_command_leaves_its_outcome_unknown_and_then_is_unavailable(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await greet(reader, writer)
        await read_command(reader)

    async def use(qmp: QmpConnection) -> None:
        with pytest.raises(OutcomeUnknownError):
            await qmp.execute("stop")
        await qmp.wait_closed()
        with pytest.raises(UnavailableError):
            await qmp.execute("cont")
        with qmp.listen() as listener, pytest.raises(UnavailableError):
            await qmp.next_event(listener, 2)

    with_monitor(tmp_path / "qmp", serve, use)


def test_events_end_when_the_monitor_goes_away(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await greet(reader, writer)
        await read_command(reader)  # the command that says that somebody listens
        for _ in range(2):
            writer.write(line({"event": "STOP", "timestamp": {"seconds": 5, "microseconds": 250000}}))
        await writer.drain()

    async def use(qmp: QmpConnection) -> None:
        with qmp.listen("STOP") as listener:
            with pytest.raises(OutcomeUnknownError):
                await qmp.execute("any", timeout_s=2)
            for _ in range(2):
                assert (await qmp.next_event(listener, 2))["event"] == "STOP"
            with pytest.raises(UnavailableError):
                await qmp.next_event(listener, 2)

    with_monitor(tmp_path / "qmp", serve, use)


def test_no_event_in_time_is_a_timeout(tmp_path: Path) -> None:
    async def use(qmp: QmpConnection) -> None:
        with qmp.listen("STOP") as listener, pytest.raises(TimeoutError):
            await qmp.next_event(listener, 0.05)
        assert await qmp.execute("any") == {}

    with_monitor(tmp_path / "qmp", monitor(echo), use)


@pytest.mark.parametrize("garbage", [b"\xff\xfe\x00\n", b"{}\n", b"[]\n", b'{"QMP": 5}\n', b"HTTP/1.1 200 OK\r\n\r\n"])
def test_what_does_not_greet_as_a_monitor_is_a_peer_error(tmp_path: Path, garbage: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(garbage)
        await reader.read()

    async def scenario() -> None:
        async with serving(tmp_path / "qmp", serve) as path:
            with pytest.raises(PeerError):
                await connect_qmp(path, "vm-1", os.getpid(), 2)

    asyncio.run(scenario())


@pytest.mark.parametrize("garbage", [b"\xff\xfe\x00\n", b"[]\n", b'{"error": 5}\n'])
def test_garbage_instead_of_an_answer_ends_the_session_and_not_the_agent(tmp_path: Path, garbage: bytes) -> None:
    def answer(request: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(garbage)

    async def use(qmp: QmpConnection) -> None:
        with pytest.raises(OutcomeUnknownError):
            await qmp.execute("stop", timeout_s=2)
        with pytest.raises(UnavailableError):
            await qmp.execute("stop", timeout_s=2)

    with_monitor(tmp_path / "qmp", monitor(answer), use)


def test_an_answer_that_is_neither_value_nor_error_is_a_peer_error(tmp_path: Path) -> None:
    def answer(request: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(line({"id": request["id"]}))

    async def use(qmp: QmpConnection) -> None:
        with pytest.raises(PeerError):
            await qmp.execute("stop", timeout_s=2)

    with_monitor(tmp_path / "qmp", monitor(answer), use)


def test_nobody_at_the_socket_and_a_silent_monitor_are_unavailable(tmp_path: Path) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def scenario() -> None:
        with pytest.raises(UnavailableError):
            await connect_qmp(tmp_path / "none", "vm-1", os.getpid(), 1)
        async with serving(tmp_path / "qmp", silent) as path:
            with pytest.raises(UnavailableError):
                await connect_qmp(path, "vm-1", os.getpid(), 0.05)

    asyncio.run(scenario())


def test_a_command_that_would_pin_memory_is_never_sent(tmp_path: Path) -> None:
    async def use(qmp: QmpConnection) -> None:
        with pytest.raises(PinnedMemoryError):
            await qmp.execute("blockdev-add", {"driver": "file", "node-name": "x", "cache": {"direct": True}})

    def never(request: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        pytest.fail("a command was sent")

    with_monitor(tmp_path / "qmp", monitor(never), use)


def test_a_path_longer_than_a_socket_address_works(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()

    async def use(qmp: QmpConnection) -> None:
        assert await qmp.execute("any") == {}

    with_monitor(folder / "qmp.sock", monitor(echo), use)


def test_a_listening_socket_replaces_what_was_there_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listening_socket(path).close()
    with listening_socket(path):
        assert os.stat(path).st_mode & 0o777 == 0o600
