"""Packing: bytes compressed with zstd for the wire where that pays, and made plain again within bounds.

A peer says by the TLS protocol that it selects (ALPN, RFC 7301) whether it takes packed bytes: an older one selects none, and is
sent none.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import zstandard

from architect.errors import PeerError
from architect.model.compression import Compression
from architect.silo.compression_choice import CompressionChoice, FrameCost
from architect.silo.stream_connection import StreamConnection
from architect.wire.framing import CHECK_VERSION

CODEC = "zstd"
LEVEL = 1


class PackedError(PeerError):
    """Packed bytes that are none: damaged, or of another size than they have to be."""


class Packing:
    """The sending side of one stream: compresses what the choice says, and measures for it.

    `begin`, `pack`, `wait`, `sent` for each frame; one that is not told to be `sent` is not measured.

    :param connection: its peer takes packed bytes.
    :param now: the clock.
    """

    def __init__(self, wish: Compression, connection: StreamConnection, now: Callable[[], float] = time.monotonic) -> None:
        self._choice = CompressionChoice(wish)
        self._connection = connection
        self._now = now
        self._compressor = zstandard.ZstdCompressor(level=LEVEL)
        self.begin()

    def begin(self) -> None:
        """A frame begins."""
        self._cost = FrameCost()
        self._began_s, self._worked_s = self._now(), time.thread_time()
        self._link = self._connection.link_reading()

    def pack(self, body: memoryview) -> bytes | None:
        """The body of this frame, compressed; None if it is to be sent as it is."""
        self._cost.plain_bytes = len(body)
        if not self._choice.packs(len(body)):
            return None
        worked_s = time.thread_time()
        packed = self._compressor.compress(body)
        self._cost.pack_s = time.thread_time() - worked_s
        self._worked_s += self._cost.pack_s
        return packed if len(packed) < len(body) else None

    def wait(self, pace: Callable[[int], object], wire_bytes: int) -> None:
        """Wait until this frame may be sent, of that size on the wire: `pace` returns when it may."""
        asked_s = self._now()
        pace(wire_bytes)
        self._cost.limited_s = self._now() - asked_s
        self._cost.wire_bytes = wire_bytes

    def sent(self) -> None:
        """The frame is sent."""
        cost, before = self._cost, self._link
        link = self._connection.link_reading()
        cost.duration_s = self._now() - self._began_s
        cost.work_s = time.thread_time() - self._worked_s
        cost.limited_s = min(cost.limited_s + link.limited_s - before.limited_s, cost.duration_s)
        cost.acked_bytes = link.acked_bytes - before.acked_bytes
        self._choice.took(cost, packed=cost.pack_s > 0)


class Inflater:
    """The receiving side of one stream, for one thread.

    :param bytes_max: the most that one frame may be; of its window, too.
    """

    def __init__(self, bytes_max: int, peer: str) -> None:
        self._peer = peer
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=bytes_max)

    def inflated(self, body: memoryview, size_bytes: int) -> bytes:
        """The `size_bytes` bytes that were packed as `body`. No more than those are made of it, whatever it says.

        Raises:
            PackedError: it is damaged, or of another size.
        """
        try:
            # The library allocates what the frame's head says, however little it is allowed to: so the head is asked first.
            declared_bytes = zstandard.get_frame_parameters(body).content_size
            if declared_bytes != size_bytes:
                raise PackedError(self._peer, f"sent {size_bytes} bytes packed as {declared_bytes}", CHECK_VERSION)
            plain = self._decompressor.decompress(body, size_bytes, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise PackedError(self._peer, f"sent packed bytes that are damaged ({error})", "see the network between") from error
        assert len(plain) == size_bytes
        return plain
