"""Page packing: pages of a bulk frame compressed with zstd for the wire, and made plain again within bounds.

A peer says by the TLS protocol that it selects (ALPN, RFC 7301) whether it takes packed frames: an older one selects none, and is
sent plain ones only. What a frame claims of its pages and their digest is about plain bytes, whatever the wire carries.
"""

from __future__ import annotations

import time

import zstandard

from architect.errors import PeerError
from architect.model.compression import Compression
from architect.model.sizes import PAGE_BYTES
from architect.silo.compression_choice import CompressionChoice, FrameCost
from architect.silo.page_runs import decode_runs
from architect.silo.stream_connection import StreamConnection
from architect.silo.stream_messages import FRAME_PAGES_MAX, PackedPages, Pages

CODEC = "zstd"
LEVEL = 1
_HINT = "check that it is an Architect of this version"


class UnknownCodecError(PeerError):
    """Pages that are packed in a way that was not agreed on."""


class PackedPagesError(PeerError):
    """Packed pages that are none: damaged, or of another size than they have to be."""


class PagePacking:
    """The sending side of one stream: compresses what the choice says, and measures for it.

    :param connection: its peer takes packed frames.
    """

    def __init__(self, wish: Compression, connection: StreamConnection) -> None:
        self._choice = CompressionChoice(wish)
        self._connection = connection
        self._compressor = zstandard.ZstdCompressor(level=LEVEL)
        self._cost = FrameCost()
        self._begin()

    def _begin(self) -> None:
        self._began_s, self._worked_s = time.monotonic(), time.thread_time()
        self._link = self._connection.link_reading()

    def begin(self) -> None:
        """A frame begins."""
        self._cost = FrameCost()
        self._begin()

    def pack(self, body: memoryview) -> bytes | None:
        """The pages of this frame, compressed; None if they are to be sent as they are."""
        self._cost.plain_bytes = len(body)
        if not self._choice.packs(len(body)):
            return None
        began_s, worked_s = time.monotonic(), time.thread_time()
        packed = self._compressor.compress(body)
        self._cost.pack_s = time.monotonic() - began_s
        self._worked_s += time.thread_time() - worked_s
        return packed

    def sent(self, wire_bytes: int, limited_s: float) -> None:
        """The frame is sent; of its time the bandwidth limit took `limited_s`."""
        cost, before = self._cost, self._link
        link = self._connection.link_reading()
        cost.wire_bytes = wire_bytes
        cost.duration_s = time.monotonic() - self._began_s
        cost.work_s = time.thread_time() - self._worked_s
        cost.limited_s = min(limited_s + link.limited_s - before.limited_s, cost.duration_s)
        cost.acked_bytes = link.acked_bytes - before.acked_bytes
        self._choice.took(cost, packed=cost.pack_s > 0)


class PageUnpacking:
    """The receiving side of one stream, for one thread.

    :param page_count: of the VM's memory.
    """

    def __init__(self, page_count: int, peer: str) -> None:
        self._page_count = page_count
        self._peer = peer
        self._buffer = memoryview(bytearray(FRAME_PAGES_MAX * PAGE_BYTES))
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=len(self._buffer))

    def plain(self, message: PackedPages, body: memoryview) -> tuple[Pages, memoryview]:
        """The frame as it would have come without compression; valid until the next call. At most the size that its pages have is
        made of it, whatever it says.

        Raises:
            UnknownCodecError: it is packed otherwise.
            PackedPagesError: it is damaged, or not as long as its pages.
            PageRunsError: its pages are out of range.
        """
        if message.codec != CODEC:
            raise UnknownCodecError(self._peer, f"sent pages packed with {message.codec!r}", _HINT)
        size_bytes = len(decode_runs(message.runs, self._page_count, self._peer)) * PAGE_BYTES
        if not 0 < size_bytes <= len(self._buffer):
            raise PackedPagesError(self._peer, f"sent {size_bytes} bytes of pages in a packed frame", _HINT)
        self._buffer[:size_bytes] = self._inflated(body, size_bytes)
        return Pages(message.runs, message.digest), self._buffer[:size_bytes]

    def _inflated(self, body: memoryview, size_bytes: int) -> bytes:
        try:
            # The library allocates what the frame's head says, however little it is allowed to: so the head is asked first.
            declared_bytes = zstandard.get_frame_parameters(body).content_size
            if declared_bytes != size_bytes:
                raise PackedPagesError(self._peer, f"sent {size_bytes} bytes of pages packed as {declared_bytes}", _HINT)
            plain = self._decompressor.decompress(body, size_bytes, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise PackedPagesError(
                self._peer, f"sent packed pages that are damaged ({error})", "see the network between"
            ) from error
        assert len(plain) == size_bytes
        return plain
