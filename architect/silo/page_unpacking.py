"""Page unpacking: a frame of packed pages, made what it would have been without compression.

What a frame claims of its pages and their digest is about plain bytes, whatever the wire carries.
"""

from __future__ import annotations

from architect.errors import PeerError
from architect.model.sizes import PAGE_BYTES
from architect.silo.packing import CODEC, Inflater, PackedError
from architect.silo.page_runs import decode_runs
from architect.silo.stream_messages import FRAME_PAGES_MAX, PackedPages, Pages
from architect.wire.framing import CHECK_VERSION


class UnknownCodecError(PeerError):
    """Pages that are packed in a way that was not agreed on."""


class PageUnpacking:
    """For one stream, and one thread.

    :param page_count: of the VM's memory.
    """

    def __init__(self, page_count: int, peer: str) -> None:
        self._page_count = page_count
        self._peer = peer
        self._buffer = memoryview(bytearray(FRAME_PAGES_MAX * PAGE_BYTES))
        self._inflater = Inflater(len(self._buffer), peer)

    def plain(self, message: PackedPages, body: memoryview) -> tuple[Pages, memoryview]:
        """The frame as it would have come plain; valid until the next call.

        Raises:
            UnknownCodecError: it is packed otherwise.
            PackedError: it is damaged, or not as long as its pages.
            PageRunsError: its pages are out of range.
        """
        if message.codec != CODEC:
            raise UnknownCodecError(self._peer, f"sent pages packed with {message.codec!r}", CHECK_VERSION)
        size_bytes = len(decode_runs(message.runs, self._page_count, self._peer)) * PAGE_BYTES
        if not 0 < size_bytes <= len(self._buffer):
            raise PackedError(self._peer, f"sent {size_bytes} bytes of pages in a packed frame", CHECK_VERSION)
        self._buffer[:size_bytes] = self._inflater.inflated(body, size_bytes)
        return Pages(message.runs, message.digest), self._buffer[:size_bytes]
