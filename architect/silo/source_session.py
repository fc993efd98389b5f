"""Source session: one move of memory, seen from the host that the VM leaves.

`bulk` sends every page once, `round` what was written since, `cut` (the guest is paused) the rest, or the list of the rest. The
data connections share the pages by `STRIPE_PAGES`, so that a page always uses the same one, and each round ends with a barrier on
all. A page leaves the move's dirty map just before it is read (see `dirty_log`).
"""

from __future__ import annotations

import contextlib
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from architect.model.handover_span import Side, Span
from architect.model.sizes import PAGES_PER_EXTENT
from architect.runtime.part_size import PartBounds, PartSize
from architect.silo.dirty_log import DirtyLog
from architect.silo.memory_errors import MemoryStateError
from architect.silo.memory_messages import Cut, RoundStats, Served, SourceOptions
from architect.silo.merkle import HashTree
from architect.silo.page_map import PageMap
from architect.silo.page_runs import Pages, encode_parts
from architect.silo.page_sender import PageSender
from architect.silo.postcopy_source import PostcopySource
from architect.silo.ram_file import RamFile
from architect.silo.rate_limit import RateLimit
from architect.silo.source_streams import SourceStreams
from architect.silo.stream_messages import FRAME_PAGES, FRAME_PAGES_MAX, Hurry, Missing
from architect.silo.urgent_thread import urgent

CONSUMER = "move"
STRIPE_PAGES = 1024
PARALLEL_PAGES_MIN = 256
FRAME_BOUNDS = PartBounds(first=FRAME_PAGES, least=FRAME_PAGES, most=FRAME_PAGES_MAX, quick_s=0.010, slow_s=0.040)
"""Pages a frame. One costs the interpreter the same whatever it carries (docs/protocols/memory-process.md); but a copy is stopped,
and limited, between frames only."""


class SourceSession:
    """One move, at its source. Its methods block; one of them at a time, but for `stop` and `end`.

    :param tls: the client's context.
    """

    def __init__(self, options: SourceOptions, ram: RamFile, log: DirtyLog, tls: ssl.SSLContext) -> None:
        self.options = options
        self._ram = ram
        self._log = log
        self._busy = threading.Lock()
        self._stop = threading.Event()
        self._tree = HashTree(ram.page_count)
        self._announced = PageMap(ram.page_count)
        self._streams = SourceStreams(options, ram, self._tree, tls)
        log.drop(CONSUMER)
        self._map = log.consumer(CONSUMER)
        self._postcopy = PostcopySource(options, self._streams, self._map, self._tree, ram)
        self._is_cut = False
        self._cut_root = ""

    def open(self, *, resume: bool = False) -> None:
        """Connect. `resume`: go on with a post-copy whose source process was lost; the target says what it lacks.

        Raises:
            StreamLostError, StreamRefusedError: the target cannot be reached, or refuses.
        """
        self._streams.open(resume=resume)
        if resume:
            self._is_cut = True
            self._postcopy.resume_without_hashes()

    @property
    def limit(self) -> RateLimit:
        """What all that this move sends has to keep to, its disk included."""
        return self._streams.limit

    @property
    def bytes_sent(self) -> int:
        """Bytes sent on all connections of this move."""
        return self._streams.bytes_sent

    @property
    def bytes_saved(self) -> int:
        """How many more it would have been without compression."""
        return self._streams.bytes_saved

    @property
    def bytes_acked(self) -> int:
        """Of them, those that the target's kernel has."""
        return self._streams.bytes_acked

    @property
    def pages_left(self) -> int:
        """Pages that are known to be still to send."""
        return self._map.count()

    def bulk(self, deadline_s: float | None = None) -> RoundStats:
        """Send every page once, cold extents first. Holes are not sent: the target starts with zeros.

        Stops early, the rest left in the map, after `deadline_s` or when `stop` is called.

        Raises:
            StreamLostError: a connection ended.
            MemoryStateError: after the cut, or while another of these runs.
        """
        with self._only(after_cut=False):
            with self._log.held():
                absent = np.flatnonzero(self._ram.present().flags == 0)
                absent = absent[self._announced.flags[absent] == 0]
                self._map.remove(absent)
            return self._send_round(deadline_s, len(absent))

    def round(self, deadline_s: float | None = None) -> RoundStats:
        """Send what was written since it was last sent. As `bulk`."""
        with self._only(after_cut=False):
            self._log.scan()
            return self._send_round(deadline_s, 0)

    def announce(self) -> None:
        """Tell the target what it would lack if the cut were now; the guest may run.

        Raises: as `bulk`.
        """
        with self._only(after_cut=False):
            self._log.scan()
            self._send_missing(last=False)

    def cut(self, *, postcopy: bool) -> Cut:
        """The guest is paused: make the target's memory that of now, or (postcopy) make it know what it lacks.

        Raises: as `bulk`.
        """
        with self._only(after_cut=False), urgent():
            begin_s = time.monotonic()
            for sender in self._streams.data:
                sender.connection.send(Hurry())
            self._log.scan()
            scanned_s = time.monotonic()
            if postcopy:
                missing = self._send_missing(last=True)
                self._postcopy.start_demands()
                root, sent_s = "", time.monotonic()
            else:
                missing = 0
                self._send_pages(self._map.pages(), None, hurries=True)
                sent_s = time.monotonic()
                root = self._cut_root = self._tree.root()
            self._is_cut = True
            times = (
                ("memory-scan", begin_s, scanned_s),
                ("memory-send", scanned_s, sent_s),
                ("memory-root", sent_s, time.monotonic()),
            )
            spans = tuple(Span(name, Side.SOURCE, start_s, end_s, "cut") for name, start_s, end_s in times)
            return Cut(root, missing, self.bytes_sent, spans, self.bytes_saved)

    def serve(self) -> Served:
        """After a post-copy cut: push what the target lacks until it has proved that it has all. After another cut it has all
        already, and only the disk may still follow.

        Raises:
            MemoryLostError: the target could not be reached for `reconnect_s`.
            CutError: its memory is not what was sent.
        """
        with self._only(after_cut=True):
            if self._cut_root:
                return Served(self._cut_root, self.bytes_sent, 0, 0)
            return self._postcopy.serve()

    def stop(self) -> None:
        """Make what runs return early; before the cut nothing is lost by it."""
        self._stop.set()

    def end(self) -> None:
        """End the connections, forget the move. Idempotent."""
        self._stop.set()
        self._postcopy.end()
        self._streams.end()
        self._log.drop(CONSUMER)

    @contextmanager
    def _only(self, *, after_cut: bool) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            raise MemoryStateError("move", "a request for it is still running", "wait for it, or cancel it")
        try:
            if self._is_cut is not after_cut:
                raise MemoryStateError("move", "the cut was made" if self._is_cut else "no cut was made", "report this as a defect")
            self._stop.clear()
            yield
        finally:
            self._busy.release()

    def _send_round(self, deadline_s: float | None, absent_count: int) -> RoundStats:
        start_s, bytes_before, saved_before = time.monotonic(), self.bytes_sent, self.bytes_saved
        pages_before, zeros_before = self._streams.pages_sent
        self._send_pages(self._in_order(self._map.pages()), None if deadline_s is None else start_s + deadline_s)
        self._tree.root()  # not left to the pause
        self._log.scan()
        pages, zeros = self._streams.pages_sent
        return RoundStats(
            pages - pages_before, zeros - zeros_before + absent_count, self.bytes_sent - bytes_before,
            time.monotonic() - start_s, self._map.count(), self.bytes_saved - saved_before,
        )  # fmt: skip

    def _in_order(self, pages: Pages) -> Pages:
        """`pages` with those of cold extents first; within a temperature ascending."""
        order = np.argsort(self._log.heat[pages // PAGES_PER_EXTENT], kind="stable")
        ordered: Pages = pages[order]
        return ordered

    def _send_pages(self, pages: Pages, deadline_s: float | None, *, hurries: bool = False) -> None:
        """Send, and return when all is in place; few pages use one connection, because starting threads costs more."""
        if len(pages) < PARALLEL_PAGES_MIN:
            self._send_batches(self._streams.data[0], pages, deadline_s)
            self._streams.data[0].barrier()
            return
        stripes = (pages // STRIPE_PAGES) % len(self._streams.data)

        def send(index: int, sender: PageSender) -> None:
            with urgent() if hurries else contextlib.nullcontext():
                self._send_batches(sender, pages[stripes == index], deadline_s)
                sender.barrier()

        self._streams.each(send)

    def _send_batches(self, sender: PageSender, pages: Pages, deadline_s: float | None) -> None:
        size, at, sent_s = PartSize(FRAME_BOUNDS), 0, time.monotonic()
        while at < len(pages):
            if self._stop.is_set() or (deadline_s is not None and sent_s > deadline_s):
                return
            batch = np.sort(pages[at : at + size.next])
            self._map.remove(batch)
            self._announced.remove(batch)
            sender.send(batch)
            at, began_s, sent_s = at + len(batch), sent_s, time.monotonic()
            size.took(len(batch), sent_s - began_s)

    def _send_missing(self, *, last: bool) -> int:
        """Tell the target which pages it lacks; returns how many. All data before is in place: every round ends with a barrier."""
        lacking = self._map.pages()
        news = lacking[self._announced.flags[lacking] == 0]
        sender = self._streams.data[0]
        parts = encode_parts(news)
        for number, part in enumerate(parts, 1):
            sender.connection.send(Missing(part, last and number == len(parts)))
        sender.mark_unacknowledged()
        sender.barrier()
        self._announced.add(news)
        return len(lacking)
