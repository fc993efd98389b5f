"""Source streams: the connections of one move, dialled by the source: one for demands, several for data."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Literal, TypeVar

from architect.model.compression import Compression
from architect.silo.memory_messages import SourceOptions
from architect.silo.merkle import HashTree
from architect.silo.packing import Packing
from architect.silo.page_sender import PageSender
from architect.silo.ram_file import RamFile
from architect.silo.rate_limit import RateLimit
from architect.silo.stream_connection import PACKED_PROTOCOL, StreamConnection, StreamLostError, dial
from architect.silo.stream_messages import Hello
from architect.wire.framing import PROTOCOL_VERSION

ResultT = TypeVar("ResultT")


class SourceStreams:
    """The connections. `each` runs work on all data connections at once, one thread each.

    :param tls: the client's context.
    """

    def __init__(self, options: SourceOptions, ram: RamFile, tree: HashTree, tls: ssl.SSLContext) -> None:
        self._options = options
        self._ram = ram
        self._tree = tree
        self._tls = tls
        if options.compression is not Compression.OFF:
            tls.set_alpn_protocols([PACKED_PROTOCOL])
        self.limit = RateLimit(options.bandwidth_bytes_s)
        self._pool = ThreadPoolExecutor(options.streams, "memory-data")
        self._bytes_before = self._saved_before = 0
        self.demand: PageSender | None = None
        self.data: list[PageSender] = []

    def open(self, *, resume: bool = False) -> None:
        """Connect all of them, at once; none is left if one cannot be had.

        Raises:
            StreamLostError, StreamRefusedError: the target cannot be reached, or refuses.
        """
        try:
            dialled = [self._pool.submit(self._dial, "data", index, resume) for index in range(self._options.streams)]
        except RuntimeError as error:  # the pool is shut down
            raise StreamLostError("move", "it was ended", "nothing, if that was meant") from error
        try:
            self.demand = PageSender(self._dial("demand", 0, resume), self._ram, self._tree, self.limit, is_demanded=True)
            self.data = [self._bulk_sender(future.result()) for future in dialled]
        except BaseException:
            for future in dialled:
                if not future.cancel() and future.exception() is None:
                    future.result().close()
            self.close()
            raise

    def _bulk_sender(self, connection: StreamConnection) -> PageSender:
        packing = Packing(self._options.compression, connection) if connection.takes_packed else None
        return PageSender(connection, self._ram, self._tree, self.limit, packing)

    def _dial(self, purpose: Literal["data", "demand"], index: int, resume: bool) -> StreamConnection:
        options = self._options
        hello = Hello(PROTOCOL_VERSION, options.session, purpose, index, self._ram.page_count, resume)
        return dial((options.address, options.port), self._tls, options.server_name, hello)

    @property
    def bytes_sent(self) -> int:
        """Bytes sent on all connections so far, those that were closed included."""
        return self._bytes_before + sum(sender.connection.bytes_sent for sender in self._all())

    @property
    def bytes_saved(self) -> int:
        """How many more it would have been without compression."""
        return self._saved_before + sum(sender.sent.saved_bytes for sender in self._all())

    @property
    def bytes_acked(self) -> int:
        """Of them, those that the peer's kernel has."""
        return self._bytes_before + sum(sender.connection.bytes_acked for sender in self._all())

    @property
    def pages_sent(self) -> tuple[int, int]:
        """Data pages and zero pages sent on the open data connections."""
        return sum(sender.sent.pages for sender in self.data), sum(sender.sent.zero_pages for sender in self.data)

    def _all(self) -> list[PageSender]:
        return [*self.data, *([self.demand] if self.demand else [])]

    def each(self, work: Callable[[int, PageSender], ResultT]) -> list[ResultT]:
        """Run `work(index, sender)` on every data connection at once; if one fails all connections are ended.

        Raises: what the first one to fail raised.
        """
        futures: list[Future[ResultT]] = [self._pool.submit(work, index, sender) for index, sender in enumerate(self.data)]
        done, running = wait(futures, return_when=FIRST_EXCEPTION)
        failed = next((error for future in done if (error := future.exception()) is not None), None)
        if failed is not None:
            self.interrupt()
            wait(running)
            raise failed
        return [future.result() for future in futures]

    def interrupt(self) -> None:
        """End all connections under who uses them. Idempotent."""
        for sender in self._all():
            sender.connection.interrupt()

    def close(self) -> None:
        """End all connections; `open` may follow. Idempotent."""
        self._bytes_before, self._saved_before = self.bytes_sent, self.bytes_saved
        for sender in self._all():
            sender.connection.close()
        self.data, self.demand = [], None

    def end(self) -> None:
        """End all connections and threads for good."""
        self.interrupt()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self.close()
