"""The fork server: children of their own, that outlive it; a server that is killed is replaced, and ends with its client."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from architect.errors import HostError
from architect.runtime.fork_server import ForkedProcess, ForkServer
from architect.runtime.processes import ProcessIdentity, identify_process, is_alive, wait_exit

MODULE = "tests.runtime.forked_program"
PATIENCE_S = 20.0


@asynccontextmanager
async def a_server(module: str = MODULE) -> AsyncIterator[ForkServer]:
    server = ForkServer(module, "of-a-test")
    try:
        yield server
    finally:
        server.close()


async def run(server: ForkServer, log: Path, *arguments: str) -> str:
    """What a child says until it ends."""
    with log.open("wb") as file:
        child = await server.fork(list(arguments), file.fileno())
    await ended(child)
    child.close()
    return log.read_text()


async def ended(child: ForkedProcess) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not child.has_ended():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def in_loop(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE_S * 2):
            await test()

    asyncio.run(bounded())


def _identity(pid: int) -> ProcessIdentity:
    identity = identify_process(pid)
    assert identity is not None
    return identity


def _server_pid(server: ForkServer) -> int:
    assert server._process is not None
    return server._process.pid


def test_a_child_runs_the_program_in_a_session_of_its_own_and_speaks_to_its_log(tmp_path: Path) -> None:
    async def test() -> None:
        async with a_server() as server:
            assert await run(server, tmp_path / "log", "say", "hello") == "hello True\n"
            assert await run(server, tmp_path / "log", "say", "again") == "again True\n"

    in_loop(test)


def test_children_hold_nothing_of_the_server_or_of_each_other(tmp_path: Path) -> None:
    async def test() -> None:
        async with a_server() as server:
            first = await run(server, tmp_path / "log", "files")
            with (tmp_path / "log").open("wb") as file:
                waiting = [await server.fork(["wait"], file.fileno()) for _ in range(3)]
            assert await run(server, tmp_path / "log", "files") == first == "4\n"  # three standard ones, and the folder it reads
            for child in waiting:
                child.kill()
                await ended(child)
                child.close()

    in_loop(test)


def test_a_program_that_fails_is_seen_to_end_and_its_words_are_kept(tmp_path: Path) -> None:
    async def test() -> None:
        async with a_server() as server:
            assert "this went wrong" in await run(server, tmp_path / "log", "fail")

    in_loop(test)


def test_children_are_reaped(tmp_path: Path) -> None:
    async def test() -> None:
        async with a_server() as server:
            await run(server, tmp_path / "log", "say", "x")
            children = Path(f"/proc/{_server_pid(server)}/task/{_server_pid(server)}/children")
            async with asyncio.timeout(PATIENCE_S):
                while children.read_text():  # noqa: ASYNC110
                    await asyncio.sleep(0.005)

    in_loop(test)


def test_a_child_outlives_the_server(tmp_path: Path) -> None:
    async def test() -> None:
        async with a_server() as server:
            with (tmp_path / "log").open("wb") as file:
                child = await server.fork(["wait"], file.fileno())
            server.close()
            assert not child.has_ended() and is_alive(_identity(child.pid))
            child.kill()
            await ended(child)
            child.close()

    in_loop(test)


def test_a_server_that_was_killed_is_replaced(tmp_path: Path) -> None:
    async def test() -> None:
        async with a_server() as server:
            await server.start()
            killed = _identity(_server_pid(server))
            os.kill(killed.pid, signal.SIGKILL)
            assert await run(server, tmp_path / "log", "say", "still here") == "still here True\n"
            assert _server_pid(server) != killed.pid

    in_loop(test)


def test_the_server_ends_with_its_client_however_that_ends() -> None:
    text = (
        "import asyncio, os, signal\n"
        "from architect.runtime.fork_server import ForkServer\n"
        "async def run():\n"
        f"    server = ForkServer({MODULE!r}, 'of-a-test')\n"
        "    await server.start()\n"
        "    print(server._process.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(run())\n"
    )
    with subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        pid = int(client.stdout.readline())
    identity = identify_process(pid)
    if identity is not None:
        in_loop(lambda: wait_exit(identity))


def test_a_program_that_does_not_exist_is_a_named_error() -> None:
    async def test() -> None:
        async with a_server("tests.runtime.nothing_here") as server:
            with pytest.raises(HostError, match="nothing_here"):
                await server.start()

    in_loop(test)
