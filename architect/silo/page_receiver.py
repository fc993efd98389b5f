"""Page receiver: checks pages that arrive and puts them into the guest's memory.

Before the cut QEMU does not run the guest: a page is installed through the userfaultfd when it comes first, and written to the RAM
file when it comes again. Installing puts it into QEMU's page table, too: a guest that resumes on pages that were only written takes
a minor fault for each (there is no fault-around where writes are tracked), hundreds of them before its first answer. After a
post-copy cut the guest runs: a page is installed once, at one instant; one that is there already is left alone, because
the guest may have written it. `missing` are the pages that the target lacks then; a page leaves it after it is in place.
"""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path

import numpy as np

from architect.model.sizes import PAGE_BYTES
from architect.silo.memory_errors import DigestError
from architect.silo.merkle import HashTree, digest_of
from architect.silo.page_batch import hash_pages
from architect.silo.page_map import PageMap
from architect.silo.page_runs import Pages, decode_runs, run_list
from architect.silo.ram_file import RamFile
from architect.silo.stream_messages import Pages as PagesMessage
from architect.silo.stream_messages import Zeros
from architect.silo.tracker import Tracker
from architect.wire.framing import CHECK_VERSION, FrameError

MISSING_FILE = "missing.map"
LEAVES_FILE = "leaves.tree"


class PageReceiver:
    """Puts pages into the memory of one incoming VM. Several threads may use it, for different pages or after the cut.

    :param folder: where what has to outlive this process is kept; on a tmpfs. What is found there goes on.
    """

    def __init__(self, ram: RamFile, tracker: Tracker, folder: Path) -> None:
        self._ram = ram
        self._tracker = tracker
        self.missing = PageMap(ram.page_count, folder / MISSING_FILE)
        self.tree = HashTree(ram.page_count, folder / LEAVES_FILE)
        self._delivered = PageMap(ram.page_count)
        self.is_cut = False
        self.bytes_received = 0
        self.placing = threading.Lock()

    @staticmethod
    def forget(folder: Path) -> None:
        """Delete what a receiver before left in `folder`. Idempotent."""
        for name in (MISSING_FILE, LEAVES_FILE):
            (folder / name).unlink(missing_ok=True)

    def take(self, message: PagesMessage | Zeros, body: memoryview, peer: str) -> Pages:
        """Check what arrived and put it in place; returns which pages.

        Raises:
            PageRunsError, FrameError: it is out of range, or has another length than it says.
            DigestError: the bytes are not those that were sent.
        """
        pages = decode_runs(message.runs, self._ram.page_count, peer)
        if isinstance(message, Zeros):
            self._take_zeros(pages)
            return pages
        if len(body) != len(pages) * PAGE_BYTES:
            raise FrameError(peer, f"sent {len(body)} bytes for {len(pages)} pages", CHECK_VERSION)
        hashes = hash_pages(body)
        if digest_of(hashes) != message.digest:
            raise DigestError(peer, f"sent pages that do not fit their digest ({len(pages)} pages)", "see the network between")
        if self.is_cut:
            self._install(pages, body)
        else:
            self._place(pages, body)
        self.tree.set_leaves(pages, hashes)
        self.missing.remove(pages)
        self.bytes_received += len(body)
        return pages

    def _place(self, pages: Pages, body: memoryview) -> None:
        """Put pages in place while the guest stands."""
        data = np.frombuffer(body, np.uint8).reshape(len(pages), PAGE_BYTES)
        again = self._delivered.flags[pages] != 0
        new = np.flatnonzero(~again)
        if len(new):
            fresh = data if len(new) == len(pages) else data[new]
            # What exists already was touched by QEMU meanwhile, which was given zeros.
            again[new[self._tracker.install_new(pages[new], fresh.ctypes.data)]] = True
        if again.all():
            self._ram.write(pages, body)
        elif again.any():
            self._ram.write(pages[again], data[again].data.cast("B"))
        self._delivered.add(pages)

    def _install(self, pages: Pages, body: memoryview) -> None:
        self._tracker.install(pages, ctypes.addressof(ctypes.c_char.from_buffer(body)))

    def _take_zeros(self, pages: Pages) -> None:
        self.tree.set_zero(pages)
        if not self.is_cut:
            self._ram.punch(self._delivered.among(pages))
            self._delivered.remove(pages)
        self.missing.remove(pages)
        if self.is_cut:  # who waits for one of them asks again and is answered with zeros
            for first, count in run_list(pages):
                self._tracker.wake(first, count)

    def lose(self, pages: Pages) -> None:
        """The source has newer bytes of `pages`: forget ours, so that the guest's touch is a fault; before device state loads."""
        with self.placing:
            self.missing.add(pages)
            self._ram.punch(self._delivered.among(pages))
            self._delivered.remove(pages)

    def mark_present(self, first: int, count: int) -> None:
        """QEMU touched these before the cut and was given zeros; under `placing`."""
        self._delivered.flags[first : first + count] = 1
