"""Bytes of a tunnel that are packed on their way: they come out as they were, and what is no chunk is refused."""

from __future__ import annotations

import os
import socket
import threading
from typing import Any, cast

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from architect.model.compression import Compression
from architect.silo.packing import PackedError
from architect.silo.stream_connection import LinkReading, StreamConnection
from architect.silo.tunnel_chunks import CHUNK_BYTES_MAX, HEAD, PACKED_BYTES_MIN, ChunkReader, ChunkSender
from architect.silo.tunnel_link import Count, TunnelLink


class _Plain(socket.socket):
    """A socket that ends one direction as TLS does."""

    def unwrap(self) -> None:
        self.shutdown(socket.SHUT_WR)


class _Connection:
    """Stands for a connection without TLS."""

    peer = "peer"

    def __init__(self, end: socket.socket, *, takes_packed: bool) -> None:
        self.plain = _Plain(fileno=end.detach())
        self.takes_packed = takes_packed

    def take_socket(self) -> _Plain:
        return self.plain

    def link_reading(self) -> LinkReading:
        return LinkReading(0, 0.0)

    def interrupt(self) -> None:
        self.plain.close()

    def close(self) -> None:
        self.plain.close()


def _pair(*, takes_packed: bool = True) -> tuple[Any, Any]:
    return tuple(_Connection(end, takes_packed=takes_packed) for end in socket.socketpair())  # type: ignore[return-value]


def _read(sent: bytes) -> list[bytes]:
    source, target = _pair()
    thread = threading.Thread(target=lambda: (source.plain.sendall(sent), source.plain.close()))
    thread.start()
    try:
        reader, found = ChunkReader(target.plain, "peer"), []
        while data := reader.read():
            found.append(bytes(data))
        return found
    finally:
        target.close()
        thread.join()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, CHUNK_BYTES_MAX), st.booleans()), max_size=5), st.sampled_from(Compression))
def test_what_is_sent_comes_out_and_what_was_saved_is_told(parts: list[tuple[int, bool]], wish: Compression) -> None:
    source, target = _pair()
    paced: list[int] = []
    sender, reader = ChunkSender(wish, source, paced.append), ChunkReader(target.plain, "peer")
    for length, is_noise in parts:
        data = os.urandom(length) if is_noise else b"\xab" * length
        sender.buffer[:length] = data
        found: list[bytes] = []
        thread = threading.Thread(target=lambda out: out.append(bytes(reader.read())), args=(found,))
        thread.start()
        saved = sender.send(length)
        thread.join()
        assert found == [data] and paced[-1] == length - saved
        is_packed = wish is Compression.ZSTD and length >= PACKED_BYTES_MIN and not is_noise
        assert (saved > 0.9 * length) if is_packed else (wish is Compression.ZSTD or saved == 0)
        assert saved == 0 or length >= PACKED_BYTES_MIN, "who waits for a small one does not wait for the compressor"
    source.close()
    assert reader.read() == b""
    target.close()


@pytest.mark.parametrize(("size", "length"), [(0, 0), (0, 8), (9, 8), (CHUNK_BYTES_MAX + 1, CHUNK_BYTES_MAX + 1), (8, 1 << 31)])
def test_lengths_out_of_bounds_are_refused_before_anything_is_read(size: int, length: int) -> None:
    with pytest.raises(PackedError):
        _read(HEAD.pack(size, length))


def test_damaged_bytes_are_refused() -> None:
    packed = bytearray(zstandard.ZstdCompressor().compress(bytes(1 << 17)))
    assert _read(HEAD.pack(len(packed), 1 << 17) + bytes(packed)) == [bytes(1 << 17)]
    with pytest.raises(PackedError):
        _read(HEAD.pack(len(packed), 1 << 16) + bytes(packed))
    packed[-1] ^= 1
    packed[len(packed) // 2] ^= 1
    with pytest.raises(PackedError):
        _read(HEAD.pack(len(packed), 1 << 17) + bytes(packed))


def test_an_end_within_a_chunk_is_no_end() -> None:
    for cut in (1, HEAD.size, HEAD.size + 5):
        with pytest.raises(ConnectionResetError):
            _read((HEAD.pack(10, 10) + bytes(10))[:cut])
    assert _read(b"") == []


class _Link:
    """A source's and a target's end of one tunnel connection, and a client at the source and a server at the target."""

    def __init__(self, wish: Compression, *, takes_packed: bool) -> None:
        self.counted = [0, 0, 0], [0, 0, 0]
        up, down = _pair(takes_packed=takes_packed), _pair(takes_packed=takes_packed)
        self.client, near = socket.socketpair()
        self.server, far = socket.socketpair()
        source = TunnelLink(near, _cast(up[0]), _cast(down[1]), lambda _: None, self._counter(0), wish)
        target = TunnelLink(far, _cast(down[0]), _cast(up[1]), lambda _: None, self._counter(1))
        self.threads = [threading.Thread(target=link.run) for link in (source, target)]
        for thread in self.threads:
            thread.start()

    def _counter(self, index: int) -> Count:
        def count(*, sent: int = 0, received: int = 0, saved: int = 0) -> None:
            for place, number in enumerate((sent, received, saved)):
                self.counted[index][place] += number

        return count

    def end(self) -> None:
        self.client.close()
        self.server.close()
        for thread in self.threads:
            thread.join()


def _cast(connection: object) -> StreamConnection:
    return cast("StreamConnection", connection)


@pytest.mark.parametrize(
    ("wish", "takes_packed"),
    [(Compression.ZSTD, True), (Compression.ZSTD, False), (Compression.OFF, True), (Compression.AUTO, True)],
)
def test_a_link_carries_the_same_bytes_packed_or_not(wish: Compression, takes_packed: bool) -> None:
    link = _Link(wish if takes_packed else Compression.ZSTD, takes_packed=takes_packed)
    data = (b"a block of a disk " * 20_000 + os.urandom(100_000)) * 3

    def send() -> None:
        link.client.sendall(data)
        link.client.shutdown(socket.SHUT_WR)

    sending = threading.Thread(target=send)
    sending.start()
    found = b""
    while part := link.server.recv(1 << 16):
        found += part
    link.server.sendall(b"answer")
    link.server.shutdown(socket.SHUT_WR)
    assert found == data and link.client.recv(100) == b"answer"
    sending.join()
    link.end()
    sent, received, saved = link.counted[0]
    assert (sent, received) == (len(data), 6) and link.counted[1] == [6, len(data), 0]
    assert (saved > 0) is (wish is Compression.ZSTD and takes_packed)
