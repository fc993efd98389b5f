"""Tracker: QEMU's mapping of the RAM file, watched through the userfaultfd that QEMU's process holds.

A *fresh* VM is registered for writes only. An *incoming* one also for missing pages: an absent page is then a fault that the fault
server answers; a page that is present never is. That stays armed for the VM's life (going back would report all pages written),
and the next move sends from the same registration.
"""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path

import msgspec
import numpy as np

from architect.errors import HostError, NotFoundError
from architect.model.sizes import PAGE_BYTES
from architect.silo.memory_role import MemoryRole
from architect.silo.page_runs import Pages, no_pages
from architect.silo.pagemap_scan import PagemapScanner
from architect.silo.ram_file import RamFile
from architect.silo.userfault import MODE_MISSING, MODE_WP, Userfault

UFFD_NUMBER = 900
_PIDFD_OPEN, _PIDFD_GETFD = 434, 438

_libc = ctypes.CDLL(None, use_errno=True)


class AttachError(HostError):
    """A QEMU whose memory cannot be watched."""


class Mapping(msgspec.Struct, frozen=True):
    """QEMU's addresses [start, end) show the RAM file from `first_page` on."""

    start: int
    end: int
    first_page: int


class Tracker:
    """Watches one QEMU.

    :param pid: QEMU's process; its descriptor 900 is the userfaultfd.
    :param armed: the registration was done by a process before this one.
    """

    def __init__(self, pid: int, ram: RamFile, role: MemoryRole, *, armed: bool = False) -> None:
        self.pid = pid
        self.role = role
        self._scan_lock = threading.Lock()
        self._pidfd = _system_call(_PIDFD_OPEN, pid, 0, what=f"process {pid}")
        self.userfault = Userfault(_system_call(_PIDFD_GETFD, self._pidfd, UFFD_NUMBER, 0, what=f"userfaultfd of process {pid}"))
        self.mappings = _mappings(pid, ram)
        self._layout = np.array([(mapping.first_page, mapping.start) for mapping in self.mappings], np.int64)
        self._scanner = PagemapScanner(pid)
        if not armed:
            self.userfault.enable()
            mode = MODE_WP if role is MemoryRole.FRESH else MODE_WP | MODE_MISSING
            for mapping in self.mappings:
                self.userfault.register(mapping.start, mapping.end - mapping.start, mode)
                self.userfault.write_protect(mapping.start, mapping.end - mapping.start)

    @property
    def exit_descriptor(self) -> int:
        """A pidfd: readable when QEMU has ended."""
        return self._pidfd

    def written(self) -> Pages:
        """Pages written since the last call. The caller must keep them: they are not reported again."""
        with self._scan_lock:
            parts = [self._scanner.written(m.start, m.end) + m.first_page for m in self.mappings]
        return parts[0] if len(parts) == 1 else np.unique(np.concatenate(parts)) if parts else no_pages()

    def page_at(self, address: int) -> int | None:
        """The page at an address of QEMU's; None if it is none of the RAM's."""
        for mapping in self.mappings:
            if mapping.start <= address < mapping.end:
                return mapping.first_page + (address - mapping.start) // PAGE_BYTES
        return None

    def address_of(self, page: int) -> int:
        """Where QEMU sees a page."""
        for mapping in self.mappings:
            if mapping.first_page <= page < mapping.first_page + (mapping.end - mapping.start) // PAGE_BYTES:
                return mapping.start + (page - mapping.first_page) * PAGE_BYTES
        raise AttachError(f"page {page}", "QEMU does not map it", "report this as a defect")

    def install(self, pages: Pages, source: int) -> int:
        """Make the absent ones of `pages` (ascending) present with the bytes at our address `source`, one page behind the other.

        A page that exists is left as it is. Who waits for any of them is woken. Returns how many pages were new.

        Raises:
            UserfaultError: QEMU is gone.
        """
        present = self.install_new(pages, source)
        for place in present:
            self.userfault.wake(self.address_of(int(pages[place])), PAGE_BYTES)
        return len(pages) - len(present)

    def install_new(self, pages: Pages, source: int) -> Pages:
        """As `install`, where nobody waits for any but absent pages; returns the places in `pages` of those that existed."""
        places: Pages = np.flatnonzero(self.userfault.install(self._layout, pages, source))
        return places

    def wake(self, first: int, count: int) -> None:
        """Let who waits for these pages try again."""
        self.userfault.wake(self.address_of(first), count * PAGE_BYTES)

    def wake_all(self) -> None:
        """Let all who wait try again: a fault message that a process before us read is not delivered twice."""
        for mapping in self.mappings:
            self.userfault.wake(mapping.start, mapping.end - mapping.start)

    def close(self) -> None:
        """Stop watching; the registration stays with QEMU."""
        self._scanner.close()
        self.userfault.close()
        os.close(self._pidfd)


def _mappings(pid: int, ram: RamFile) -> tuple[Mapping, ...]:
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError as error:
        raise NotFoundError(f"process {pid}", f"cannot be read ({error.strerror})", "see that QEMU runs") from error
    found = []
    for fields in (line.split() for line in lines):
        if len(fields) > 5 and int(fields[4]) == ram.inode and fields[5].startswith("/memfd:"):
            start, end = (int(word, 16) for word in fields[0].split("-"))
            found.append(Mapping(start, end, int(fields[2], 16) // PAGE_BYTES))
    found.sort(key=lambda mapping: mapping.first_page)
    if sum(m.end - m.start for m in found) != ram.size_bytes:
        raise AttachError(
            f"process {pid}", f"maps {len(found)} parts of guest memory, not all of it once", "see QEMU's memory backend"
        )
    return tuple(found)


def _system_call(number: int, *arguments: int, what: str) -> int:
    result = int(_libc.syscall(number, *arguments))
    if result < 0:
        cause = os.strerror(ctypes.get_errno())
        raise AttachError(what, f"cannot be taken ({cause})", "see that QEMU runs with the userfaultfd shim, and run as root")
    return result
