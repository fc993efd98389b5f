"""The index of a remote disk: each part is asked for once, and what cannot be had is an error and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from architect.drafter import remote_index
from architect.drafter.qmp import QmpRefusedError
from architect.drafter.remote_index import load_index
from architect.errors import HostError

GIB = 1 << 30
EIO = 5


class _Listener:
    def __enter__(self) -> _Listener:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class _Machine:
    """A QEMU with a qcow2 of 5 GiB, as far as its monitor and its NBD server are asked. `failing`: reads there fail with EIO;
    `garble` changes what its server is about to send; `at_once`: so many requests are answered together, the last one first."""

    name = "vm-1"

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.qmp = self
        self.disk_links = self
        self.exports: list[str] = []
        self.reads: list[int] = []
        self.cuts: list[str] = []
        self.failing = -1
        self.is_silent = False
        self.garble: Callable[[bytes], bytes] = lambda data: data
        self.at_once = 1
        self._listening: socket.socket | None = None
        self._serving: asyncio.Task[None] | None = None

    def listen(self, *_: str) -> _Listener:
        return _Listener()

    async def next_event(self, *_: object) -> None:
        pass

    def cut(self, name: str) -> None:
        self.cuts.append(name)

    async def execute(self, command: str, arguments: dict[str, Any] | None = None, *, fd: int = -1) -> Any:
        match command:
            case "query-named-block-nodes":
                return [{"node-name": "remote", "image": {"cluster-size": 65536, "virtual-size": 5 * GIB}}]
            case "query-block-exports":
                return [{"id": export, "shutting-down": False} for export in self.exports]
            case "getfd":
                self._listening = socket.socket(fileno=os.dup(fd))
                self._listening.setblocking(False)
            case "nbd-server-stop":
                if self._serving is None:
                    raise QmpRefusedError(self.name, command, "NBD server not running")
                self._serving.cancel()
                self._serving = None
            case "nbd-server-start":
                self._serving = asyncio.create_task(self._serve())
            case "block-export-add":
                assert arguments is not None
                self.exports.append(str(arguments["id"]))
            case "block-export-del":
                assert arguments is not None
                self.exports.remove(str(arguments["id"]))
            case _:
                raise AssertionError(command)
        return {}

    async def _serve(self) -> None:
        assert self._listening is not None
        connection, _ = await asyncio.get_running_loop().sock_accept(self._listening)
        reader, writer = await asyncio.open_unix_connection(sock=connection)
        try:
            writer.write(self.garble(struct.pack(">8s8sH", b"NBDMAGIC", b"IHAVEOPT", 3)))
            flags, magic, option, length = struct.unpack(">I8sII", await reader.readexactly(20))
            assert (flags, magic, option) == (3, b"IHAVEOPT", 1)
            assert [(await reader.readexactly(length)).decode()] == self.exports
            writer.write(struct.pack(">QH", 5 * GIB, 3))
            while not self.is_silent:
                answers = [await self._answer(reader) for _ in range(self.at_once)]
                writer.write(b"".join(reversed(answers)))
            await asyncio.Event().wait()
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        _, _, command, handle, at, count = struct.unpack(">IHHQQI", await reader.readexactly(28))
        assert (command, count) == (0, 512)
        self.reads.append(at)
        failure = EIO if at == self.failing else 0
        return self.garble(struct.pack(">IIQ", 0x67446698, failure, handle)) + (b"" if failure else bytes(512))


def _load(tmp_path: Path, change: Callable[[_Machine], None]) -> _Machine:
    async def test() -> None:
        change(machine)
        try:
            await load_index(cast("Any", machine), "remote")
        finally:
            await asyncio.sleep(0)
            assert machine.exports == []
            assert list(tmp_path.iterdir()) == []

    machine = _Machine(tmp_path)
    try:
        asyncio.run(test())
    finally:
        assert machine._listening is not None
        machine._listening.close()
    return machine


def test_each_part_of_the_index_is_asked_for_once(tmp_path: Path) -> None:
    machine = _load(tmp_path, lambda machine: None)
    assert machine.reads == list(range(0, 5 * GIB, GIB // 4))
    assert machine.cuts == []


def test_an_export_that_an_agent_left_which_was_killed_is_no_hindrance(tmp_path: Path) -> None:
    machine = _load(tmp_path, lambda machine: machine.exports.append("index"))
    assert len(machine.reads) == 20


def test_a_part_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"index of it cannot be read \(.*Input/output error\)"):
        _load(tmp_path, lambda machine: setattr(machine, "failing", 3 * GIB))


def test_parts_may_come_in_any_order(tmp_path: Path) -> None:
    assert len(_load(tmp_path, lambda machine: setattr(machine, "at_once", 4)).reads) == 20


@pytest.mark.parametrize(
    ("length", "place", "cause"),
    [(18, 0, "greeting: is of no NBD server"), (18, 17, "greeting: offers no fixed newstyle"), (16, 0, "reply: does not begin"),
     (16, 15, "reply: is to 1, which is not under way")],
)  # fmt: skip
def test_a_server_that_answers_by_no_protocol_is_an_error(tmp_path: Path, length: int, place: int, cause: str) -> None:
    def garble(data: bytes) -> bytes:
        if len(data) != length:
            return data
        return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]

    with pytest.raises(HostError, match=f"cannot be read .*NBD {cause}"):
        _load(tmp_path, lambda machine: setattr(machine, "garble", garble))


def test_a_source_that_falls_silent_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_index, "SILENCE_S", 0.01)
    found: list[_Machine] = []

    def fall_silent(machine: _Machine) -> None:
        machine.is_silent = True
        found.append(machine)

    with pytest.raises(HostError, match="nothing came for"):
        _load(tmp_path, fall_silent)
    assert found[0].cuts == ["remote-file"]
