"""One end of the demo's checksummed stream, without I/O: bytes in, bytes out, every byte verified.

The other end is `demo/image/service.c`, whose head describes the protocol. Data is a pure function of a seed and an offset, so a
byte that is lost, doubled, changed or out of order is found at once, wherever it happened.
"""

from __future__ import annotations

import hashlib
import struct
from enum import IntEnum

import numpy as np

from architect.errors import PeerError

MAGIC = b"ARCHSTR1"
HELLO = struct.Struct("<8sQQQ")
HEADER = struct.Struct("<IIQQQ")
PAYLOAD_BYTES_MAX = 16384
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


class FrameKind(IntEnum):
    """What a frame carries."""

    DATA = 1
    END = 2
    BAD = 3


class StreamBrokenError(PeerError):
    """The stream is not what was sent. `offset` is the first byte received that is wrong."""

    code = "stream-broken"

    def __init__(self, name: str, offset: int, cause: str) -> None:
        super().__init__(f"stream {name}", f"{cause} at byte {offset}", "a move has damaged it, or the other end is not the demo's")
        self.offset = offset


def stream_data(seed: int, offset: int, length: int) -> bytes:
    """Bytes `offset` to `offset + length` of the stream of `seed`."""
    first, last = offset // 8, (offset + length + 7) // 8
    with np.errstate(over="ignore"):
        words = np.arange(first + 1, last + 1, dtype=np.uint64) * np.uint64(_GOLDEN) + np.uint64(seed)
        words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    words ^= words >> np.uint64(31)
    return words.astype("<u8").tobytes()[offset - first * 8 :][:length]


def parse_hello(data: bytes) -> tuple[int, int]:
    """Seed and wanted rate (bytes/s) of a connector's hello.

    Raises:
        StreamBrokenError: it is none.
    """
    magic, seed, rate_bytes_s, _ = HELLO.unpack(data)
    if magic != MAGIC:
        raise StreamBrokenError("of a new connection", 0, "it does not begin with a hello")
    return seed, rate_bytes_s


def format_hello(seed: int, rate_bytes_s: int) -> bytes:
    """A connector's hello."""
    return HELLO.pack(MAGIC, seed, rate_bytes_s, 0)


class CheckedStream:
    """The state of one end. `sent`, `verified` (of the peer's data, by us) and `confirmed` (of ours, by the peer) count bytes."""

    def __init__(self, name: str, seed: int, is_connector: bool) -> None:
        self.name = name
        self.sent = 0
        self.verified = 0
        self.confirmed = 0
        self.has_ended = False
        self._out_seed, self._in_seed = (seed, seed ^ _MASK) if is_connector else (seed ^ _MASK, seed)
        self._out_hash = hashlib.sha256()
        self._in_hash = hashlib.sha256()
        self._buffer = bytearray()

    @property
    def sent_sha256(self) -> str:
        """The hash of all data sent."""
        return self._out_hash.hexdigest()

    @property
    def verified_sha256(self) -> str:
        """The hash of all data received."""
        return self._in_hash.hexdigest()

    def data_frame(self, length: int, now_ns: int) -> bytes:
        """The next `length` bytes of our data as a frame; none is a heartbeat."""
        payload = stream_data(self._out_seed, self.sent, length)
        frame = HEADER.pack(FrameKind.DATA, length, self.sent, self.verified, now_ns) + payload
        self._out_hash.update(payload)
        self.sent += length
        return frame

    def end_frame(self, now_ns: int) -> bytes:
        """The frame that says that we have sent all."""
        digest = self._out_hash.digest()
        return HEADER.pack(FrameKind.END, len(digest), self.sent, self.verified, now_ns) + digest

    def receive(self, data: bytes) -> int:
        """Take what arrived; returns how many frames were completed by it.

        Raises:
            StreamBrokenError: it is not what the peer must have sent, or the peer says so of ours.
        """
        self._buffer += data
        frames = 0
        while len(self._buffer) >= HEADER.size:
            kind, length, offset, confirmed, _ = HEADER.unpack_from(self._buffer)
            self._check_header(kind, length, offset, confirmed)
            if len(self._buffer) < HEADER.size + length:
                break
            payload = bytes(self._buffer[HEADER.size : HEADER.size + length])
            del self._buffer[: HEADER.size + length]
            self.confirmed = confirmed
            self._take(FrameKind(kind), payload)
            frames += 1
        return frames

    def close(self) -> None:
        """The connection has been closed by the peer.

        Raises:
            StreamBrokenError: the peer had not said END.
        """
        if not self.has_ended:
            raise StreamBrokenError(self.name, self.verified, "the connection was closed")

    def _check_header(self, kind: int, length: int, offset: int, confirmed: int) -> None:
        if kind == FrameKind.BAD:
            raise StreamBrokenError(self.name, confirmed, "the peer found our data wrong")
        if kind not in (FrameKind.DATA, FrameKind.END) or length > PAYLOAD_BYTES_MAX or self.has_ended:
            raise StreamBrokenError(self.name, self.verified, f"a frame of kind {kind} and {length} bytes")
        if offset != self.verified or not self.confirmed <= confirmed <= self.sent:
            raise StreamBrokenError(self.name, self.verified, f"a frame of byte {offset}")

    def _take(self, kind: FrameKind, payload: bytes) -> None:
        if kind is FrameKind.END:
            if payload != self._in_hash.digest():
                raise StreamBrokenError(self.name, self.verified, "a wrong hash of all data")
            self.has_ended = True
            return
        expected = stream_data(self._in_seed, self.verified, len(payload))
        if payload != expected:
            wrong = next(i for i, (a, b) in enumerate(zip(payload, expected, strict=True)) if a != b)
            raise StreamBrokenError(self.name, self.verified + wrong, "a wrong byte")
        self._in_hash.update(payload)
        self.verified += len(payload)
