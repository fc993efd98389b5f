"""Tunnel chunks: how a tunnel's bytes travel towards the target where both ends have agreed on compression.

    u32 wire_bytes | u32 plain_bytes | the bytes        big-endian; of equal lengths: as they are, otherwise packed

Small ones are never packed: what a guest waits for is mostly small. The end of input is the end between two chunks.
"""

from __future__ import annotations

import ssl
import struct
from collections.abc import Callable

from architect.model.compression import Compression
from architect.silo.exact_bytes import fill
from architect.silo.packing import Inflater, PackedError, Packing
from architect.silo.stream_connection import StreamConnection

CHUNK_BYTES_MAX = 256 << 10
PACKED_BYTES_MIN = 16 << 10
HEAD = struct.Struct(">II")


class ChunkSender:
    """Sends chunks on a connection whose peer takes them; by one thread.

    :param pace: called with a number of bytes before they are sent; returns when they may be.
    """

    def __init__(self, wish: Compression, connection: StreamConnection, pace: Callable[[int], None]) -> None:
        self._packing = Packing(wish, connection)
        self._tls = connection.take_socket()
        self._pace = pace
        self._frame = memoryview(bytearray(HEAD.size + CHUNK_BYTES_MAX))
        self.buffer = self._frame[HEAD.size :]
        """What the next `send` sends the beginning of."""

    def send(self, length: int) -> int:
        """Send `length` bytes of the buffer; returns how many of them compression kept off the wire."""
        self._packing.begin()
        packed = self._packing.pack(self.buffer[:length]) if length >= PACKED_BYTES_MIN else None
        size = length if packed is None else len(packed)
        self._packing.wait(self._pace, size)
        HEAD.pack_into(self._frame, 0, size, length)
        self._tls.sendall(self._frame[: HEAD.size + length] if packed is None else bytes(self._frame[: HEAD.size]) + packed)
        if length >= PACKED_BYTES_MIN:
            self._packing.sent()
        return length - size


class ChunkReader:
    """Reads chunks; by one thread."""

    def __init__(self, tls: ssl.SSLSocket, peer: str) -> None:
        self._tls = tls
        self._peer = peer
        self._inflater = Inflater(CHUNK_BYTES_MAX, peer)
        self._head = memoryview(bytearray(HEAD.size))
        self._buffer = memoryview(bytearray(CHUNK_BYTES_MAX))

    def read(self) -> memoryview | bytes:
        """The bytes of the next chunk, valid until the next call; none at the end.

        Raises:
            PackedError: it is no chunk.
            OSError: the connection broke, or ended within a chunk.
        """
        if not (begun_bytes := fill(self._tls, self._head)):
            return b""
        if begun_bytes < HEAD.size:
            raise ConnectionResetError("ended within a chunk")
        size, length = HEAD.unpack(self._head)
        if not 0 < size <= length <= CHUNK_BYTES_MAX:
            raise PackedError(self._peer, f"sent a chunk of {size} bytes for {length}", "check that it is an Architect")
        body = self._buffer[:size]
        if fill(self._tls, body) < size:
            raise ConnectionResetError("ended within a chunk")
        return body if size == length else self._inflater.inflated(body, length)
