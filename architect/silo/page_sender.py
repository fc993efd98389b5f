"""Page sender: reads pages of the guest, hashes exactly the bytes that it sends, and sends them on one connection."""

from __future__ import annotations

import msgspec
import numpy as np

from architect.errors import PeerError
from architect.model.sizes import PAGE_BYTES
from architect.silo.merkle import HashTree, digest_of
from architect.silo.packing import CODEC, Packing
from architect.silo.page_batch import find_data, hash_pages
from architect.silo.page_runs import Pages, encode_parts, encode_runs
from architect.silo.ram_file import RamFile
from architect.silo.rate_limit import RateLimit
from architect.silo.stream_connection import StreamConnection
from architect.silo.stream_messages import FRAME_PAGES_MAX, Ack, Barrier, PackedPages, Zeros
from architect.silo.stream_messages import Pages as PagesMessage

ACK_TIMEOUT_S = 30.0


class BarrierError(PeerError):
    """The target acknowledged something else."""


class Sent(msgspec.Struct):
    """What a sender has sent so far; `saved_bytes` were kept off the wire by compression."""

    pages: int = 0
    zero_pages: int = 0
    saved_bytes: int = 0


class PageSender:
    """Sends on one connection; by one thread at a time.

    :param tree: learns the hash of every page that is sent.
    :param packing: compresses where that pays; None: nothing is compressed.
    :param is_demanded: a guest waits for what is sent: the limit counts it, and lets it pass.
    """

    def __init__(
        self, connection: StreamConnection, ram: RamFile, tree: HashTree, limit: RateLimit, packing: Packing | None = None, *,
        is_demanded: bool = False,
    ) -> None:  # fmt: skip
        assert packing is None or not is_demanded, "who demands a page does not wait for compression"
        self.connection = connection
        self.sent = Sent()
        self._ram = ram
        self._tree = tree
        self._pace = limit.count if is_demanded else limit.wait
        self._packing = packing
        self._buffer = np.empty((FRAME_PAGES_MAX, PAGE_BYTES), np.uint8)
        self._packed = np.empty((FRAME_PAGES_MAX, PAGE_BYTES), np.uint8)
        self._barriers = 0
        self._unacknowledged = False

    def send(self, pages: Pages) -> None:
        """Read and send up to `FRAME_PAGES_MAX` pages (ascending).

        Raises:
            StreamLostError: the connection ended.
        """
        if self._packing is not None:
            self._packing.begin()
        buffer = self._buffer[: len(pages)]
        self._ram.read(pages, buffer.reshape(-1).data)
        is_data = find_data(buffer.reshape(-1).data)
        if is_data.all():
            self._send_data(pages, buffer.reshape(-1).data)
            return
        data, zeros = pages[is_data], pages[~is_data]
        self._tree.set_zero(zeros)
        self.sent.zero_pages += len(zeros)
        self._unacknowledged = True
        self._send_zeros(encode_runs(zeros))
        if len(data):
            packed = np.compress(is_data, buffer, axis=0, out=self._packed[: len(data)])
            self._send_data(data, packed.reshape(-1).data)

    def _send_data(self, pages: Pages, body: memoryview) -> None:
        hashes = hash_pages(body)
        self._tree.set_leaves(pages, hashes)
        self._unacknowledged = True
        message = PagesMessage(encode_runs(pages), digest_of(hashes))
        if self._packing is None:
            self._pace(len(body))
            self.connection.send(message, body)
        else:
            self._send_packed(message, body, self._packing)
        self.sent.pages += len(pages)

    def _send_packed(self, message: PagesMessage, body: memoryview, packing: Packing) -> None:
        packed = packing.pack(body)
        if packed is None:
            frame: PagesMessage | PackedPages = message
            wire: memoryview | bytes = body
        else:
            frame, wire = PackedPages(message.runs, message.digest, CODEC), packed
        packing.wait(self._pace, len(wire))
        self.connection.send(frame, wire)
        self.sent.saved_bytes += len(body) - len(wire)
        packing.sent()

    def send_zeros(self, pages: Pages) -> None:
        """Say that `pages` (ascending, any number) are zeros."""
        self._tree.set_zero(pages)
        self.sent.zero_pages += len(pages)
        self._unacknowledged = True
        for part in encode_parts(pages):
            self._send_zeros(part)

    def _send_zeros(self, runs: bytes) -> None:
        self._pace(len(runs))
        self.connection.send(Zeros(runs))

    def mark_unacknowledged(self) -> None:
        """Something was sent beside this sender that the next barrier has to cover."""
        self._unacknowledged = True

    def barrier(self) -> None:
        """Return when all that was sent is in place at the target.

        Raises:
            StreamLostError: the connection ended, or the target did not answer for `ACK_TIMEOUT_S`.
        """
        if not self._unacknowledged:
            return
        self._barriers += 1
        self.connection.send(Barrier(self._barriers))
        if (answer := self.connection.receive_as(Ack, ACK_TIMEOUT_S)).number != self._barriers:
            raise BarrierError(
                self.connection.peer, f"acknowledged {answer.number} for {self._barriers}", "check that it is an Architect"
            )
        self._unacknowledged = False
