"""A connection that is handed on only once the other end has spoken."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from architect.agent.move_shared import connect_answered
from architect.errors import HostError

GREETING = b"NBDMAGIC"


def _served(path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()
    return server


def test_a_connection_is_had_when_the_other_end_has_spoken_and_nothing_of_that_was_read(tmp_path: Path) -> None:
    async def test() -> bytes:
        with _served(tmp_path / "disk.sock") as server:
            connecting = asyncio.create_task(connect_answered(tmp_path / "disk.sock", 30))
            await asyncio.sleep(0)
            peer, _ = server.accept()
            with peer:
                assert not (await asyncio.wait((connecting,), timeout=0.05))[0], "it has said nothing yet"
                peer.sendall(GREETING)
                with await connecting as connection:
                    return connection.recv(100)

    assert asyncio.run(test()) == GREETING


def test_an_end_that_says_nothing_and_one_that_hangs_up_are_errors(tmp_path: Path) -> None:
    async def test(*, hangs_up: bool) -> None:
        with _served(tmp_path / f"{hangs_up}.sock") as server:
            connecting = asyncio.create_task(connect_answered(tmp_path / f"{hangs_up}.sock", 30 if hangs_up else 0.01))
            await asyncio.sleep(0)
            peer, _ = server.accept()
            with peer:
                if hangs_up:
                    peer.shutdown(socket.SHUT_RDWR)
                await connecting

    with pytest.raises(HostError, match="says nothing"):
        asyncio.run(test(hangs_up=False))
    with pytest.raises(HostError, match="it was closed"):
        asyncio.run(test(hangs_up=True))
    with pytest.raises(HostError, match="No such file"):
        asyncio.run(connect_answered(tmp_path / "none.sock"))
