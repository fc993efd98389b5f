"""The NBD server of a frozen disk: QEMU's own client reads what the file holds; whoever breaks the protocol is cut off."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from architect.drafter.overlay import create_overlay
from architect.silo.exact_bytes import receive_exactly
from architect.silo.nbd_server import READ_BYTES_MAX, ServedFile, ServedFileError
from architect.wire.nbd import NbdError

MIB = 1 << 20
GO, ABORT, LIST, EXPORT_NAME = 7, 2, 3, 1
READ, WRITE, DISCONNECT = 0, 1, 2


def serve(file: ServedFile, connection: socket.socket) -> None:
    """Serve a plain socket, as a link serves a tunnel's connections."""
    file.serve(lambda count: receive_exactly(connection, count), connection.sendall)


class _Client:
    """Speaks NBD by hand. `ended` says how the server saw the end."""

    def __init__(self, file: ServedFile) -> None:
        self.ended: list[Exception | None] = []
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(10)
        self._thread = threading.Thread(target=self._serve, args=(file, theirs))
        self._thread.start()

    def _serve(self, file: ServedFile, theirs: socket.socket) -> None:
        with theirs:
            try:
                serve(file, theirs)
                self.ended.append(None)
            except (NbdError, OSError) as error:
                self.ended.append(error)

    def greet(self) -> None:
        assert self.receive(18) == b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3)
        self.socket.sendall(struct.pack(">I", 3))

    def option(self, number: int, data: bytes = b"") -> None:
        self.socket.sendall(b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data)

    def reply(self) -> tuple[int, bytes]:
        _, _, kind, length = struct.unpack(">QIII", self.receive(20))
        return kind, self.receive(length)

    def go(self) -> int:
        """Negotiate; the size of the export."""
        self.greet()
        self.option(GO, struct.pack(">I", 4) + b"disk" + struct.pack(">H", 0))
        _, about = self.reply()
        while self.reply()[0] != 1:
            pass
        return int(struct.unpack(">HQH", about)[1])

    def read(self, offset: int, length: int, command: int = READ) -> tuple[int, bytes]:
        self.socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, command, 7, offset, length))
        magic, error, cookie = struct.unpack(">IIQ", self.receive(16))
        assert (magic, cookie) == (0x67446698, 7)
        return error, b"" if error else self.receive(length)

    def receive(self, count: int) -> bytes:
        return receive_exactly(self.socket, count)

    def close(self) -> Exception | None:
        """End the connection; how the server saw that."""
        self.socket.close()
        self._thread.join(10)
        return self.ended[0]


@contextmanager
def served(path: Path, content: bytes) -> Iterator[tuple[ServedFile, _Client]]:
    path.write_bytes(content)
    file = ServedFile(str(path))
    client = _Client(file)
    try:
        yield file, client
    finally:
        client.close()
        file.close()


def test_qemu_reads_an_overlay_as_it_is_through_the_server(tmp_path: Path) -> None:
    overlay, listener = tmp_path / "overlay.qcow2", socket.socket(socket.AF_UNIX)
    asyncio.run(create_overlay(overlay, 64 * MIB))
    for offset, length in ((0, "64k"), (5 * MIB + 512, "1536"), (40 * MIB, "3M")):
        subprocess.run(["qemu-io", "-f", "qcow2", "-c", f"write -P 0x5a {offset} {length}", str(overlay)], check=True, stdout=-3)
    listener.bind(str(tmp_path / "nbd.sock"))
    listener.listen()
    file = ServedFile(str(overlay))

    def accept() -> None:
        connection, _ = listener.accept()
        with connection:
            serve(file, connection)

    thread = threading.Thread(target=accept)
    thread.start()
    remote = f"nbd:unix:{tmp_path / 'nbd.sock'}:exportname=frozen"
    call = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", remote, str(tmp_path / "copy.raw")]
    subprocess.run(call, check=True, timeout=60)
    thread.join(10)
    compare = ["qemu-img", "compare", "-f", "qcow2", "-F", "raw", str(overlay), str(tmp_path / "copy.raw")]
    assert "identical" in subprocess.run(compare, check=True, capture_output=True, text=True).stdout
    file.close()
    listener.close()


def test_any_part_of_the_file_can_be_read_and_the_rest_of_its_last_sector_is_zeros(tmp_path: Path) -> None:
    content = random.Random(1).randbytes(3 * MIB + 100)
    with served(tmp_path / "file", content) as (_, client):
        size = client.go()
        assert size == 3 * MIB + 512
        padded = content.ljust(size, b"\0")
        for offset, length in ((0, 1), (1, 4096), (MIB - 3, READ_BYTES_MAX), (3 * MIB + 50, 462), (size - 1, 1)):
            assert client.read(offset, length) == (0, padded[offset : offset + length])


def test_reads_out_of_bounds_are_refused_and_the_connection_goes_on(tmp_path: Path) -> None:
    with served(tmp_path / "file", bytes(MIB)) as (_, client):
        client.go()
        for offset, length in ((MIB, 1), (MIB - 1, 2), (0, 0), (0, READ_BYTES_MAX + 1), (1 << 63, 512)):
            assert client.read(offset, length)[0] == 22
        assert client.read(0, 512) == (0, bytes(512))


def test_options_that_are_not_known_are_declined_and_an_old_client_is_served(tmp_path: Path) -> None:
    with served(tmp_path / "file", b"x" * 512) as (_, client):
        client.greet()
        client.option(LIST)
        assert client.reply() == (0x80000001, b"")
        client.option(EXPORT_NAME, b"any")
        assert struct.unpack(">QH", client.receive(10)) == (512, 3)
        assert client.read(0, 512) == (0, b"x" * 512)


def test_a_client_that_gives_up_or_is_done_ends_the_connection_in_order(tmp_path: Path) -> None:
    with served(tmp_path / "file", bytes(512)) as (file, client):
        client.greet()
        client.option(ABORT)
        assert client.reply()[0] == 1
        assert client.close() is None
        done = _Client(file)
        done.go()
        done.socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, DISCONNECT, 1, 0, 0))
        assert done.close() is None


def test_a_write_ends_the_connection_and_the_file_is_as_it_was(tmp_path: Path) -> None:
    with served(tmp_path / "file", bytes(512)) as (_, client):
        client.go()
        client.socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, WRITE, 1, 0, 512) + b"x" * 512)
        with contextlib.suppress(ConnectionResetError):
            assert client.socket.recv(1) == b""
        assert isinstance(client.close(), NbdError)
    assert (tmp_path / "file").read_bytes() == bytes(512)


def test_a_connection_is_served_on_when_the_offer_ends_and_reads_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"a" * 512)
    file = ServedFile(str(tmp_path / "file"))
    client = _Client(file)
    client.go()
    file.close()
    (tmp_path / "other").write_bytes(b"b" * 512)
    others = [os.open(tmp_path / "other", os.O_RDONLY) for _ in range(8)]
    assert client.read(0, 512) == (0, b"a" * 512)
    client.close()
    for descriptor in others:
        os.close(descriptor)


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ServedFileError, match=r"overlay.qcow2.*No such file"):
        ServedFile(str(tmp_path / "overlay.qcow2"))


@given(st.binary(max_size=400), st.integers(0, 2))
def test_garbage_is_answered_by_an_end_and_never_by_the_files_content(garbage: bytes, stage: int) -> None:
    answers = bytearray()
    words = [b"", struct.pack(">I", 3), struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", EXPORT_NAME, 0)][stage] + garbage
    data = memoryview(words)

    def receive(count: int) -> bytes:
        nonlocal data
        if len(data) < count:
            raise ConnectionResetError("ended")
        part, data = bytes(data[:count]), data[count:]
        return part

    descriptor = os.memfd_create("garbage")
    os.write(descriptor, b"secret!!" * 64)
    file = ServedFile(f"/proc/self/fd/{descriptor}")
    try:
        file.serve(receive, answers.extend)
    except (NbdError, ConnectionResetError):
        pass
    finally:
        file.close()
        os.close(descriptor)
    assert len(answers) < 2000
