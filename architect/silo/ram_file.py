"""The RAM file: a guest's memory as a memfd that QEMU maps. Read and written by system calls, never through a mapping of ours.

A read of a hole through a mapping would make a page present, which at the target of a move means "valid"; pread(2) makes none.
Holes are pages of zeros that cost nothing: moves skip them at the source and leave them at the target.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from architect.errors import HostError, NotFoundError
from architect.model.sizes import PAGE_BYTES
from architect.runtime.file_hole import punch_hole
from architect.silo.page_batch import punch_pages, read_pages, write_pages
from architect.silo.page_map import PageMap
from architect.silo.page_runs import Pages, is_one_run

NAME = "architect-ram"


class RamFileError(HostError):
    """The RAM file cannot be made, found or changed."""


class RamFile:
    """A guest's memory.

    :param descriptor: the memfd, owned by this object from now on.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        status = os.fstat(descriptor)
        self.size_bytes = status.st_size
        self.inode = status.st_ino
        self.page_count = self.size_bytes // PAGE_BYTES

    @classmethod
    def create(cls, size_bytes: int) -> RamFile:
        """A new one, all zeros.

        Raises:
            RamFileError: the kernel refused.
        """
        try:
            descriptor = os.memfd_create(NAME, os.MFD_CLOEXEC)
            os.ftruncate(descriptor, size_bytes)
        except OSError as error:
            raise RamFileError("guest memory", f"cannot make a memfd ({error.strerror})", "see the host's memory limits") from error
        return cls(descriptor)

    @classmethod
    def of_process(cls, pid: int) -> RamFile:
        """The one that a running QEMU holds.

        Raises:
            NotFoundError: the process is gone or holds none.
        """
        folder = Path(f"/proc/{pid}/fd")
        try:
            for link in folder.iterdir():
                try:
                    name = os.readlink(link)
                except FileNotFoundError:
                    continue
                if name.startswith(f"/memfd:{NAME}"):
                    return cls(os.open(link, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            raise NotFoundError(f"process {pid}", f"cannot be read ({error.strerror})", "see that QEMU runs") from error
        raise NotFoundError(f"process {pid}", "holds no guest memory of ours", "see that it is the VM's QEMU")

    def read(self, pages: Pages, buffer: memoryview) -> int:
        """Read `pages` (ascending) one behind the other into `buffer`; returns the bytes read. Holes stay holes."""
        length = len(pages) * PAGE_BYTES
        with _refusals("read"):
            if len(pages) and is_one_run(pages):
                if os.preadv(self.descriptor, [buffer[:length]], int(pages[0]) * PAGE_BYTES) != length:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
            else:
                read_pages(self.descriptor, pages, buffer)
        return length

    def write(self, pages: Pages, data: memoryview) -> None:
        """Write `data` to `pages` (ascending)."""
        with _refusals("written"):
            if len(pages) and is_one_run(pages):
                if os.pwrite(self.descriptor, data, int(pages[0]) * PAGE_BYTES) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            else:
                write_pages(self.descriptor, pages, data)

    def punch(self, pages: Pages) -> None:
        """Make holes of `pages` (ascending): they are zeros again, and absent."""
        with _refusals("punched"):
            punch_pages(self.descriptor, pages)

    def punch_all(self) -> None:
        """Make one hole of everything."""
        with _refusals("punched"):
            punch_hole(self.descriptor, 0, self.size_bytes)

    def present(self) -> PageMap:
        """The pages that exist. SEEK_DATA, not mincore(2), which takes a swapped-out page for a hole."""
        found, at = PageMap(self.page_count), 0
        while True:
            try:
                start = os.lseek(self.descriptor, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return found
                raise RamFileError("guest memory", str(error.strerror), "report this as a defect") from error
            at = os.lseek(self.descriptor, start, os.SEEK_HOLE)
            found.flags[start // PAGE_BYTES : -(-at // PAGE_BYTES)] = 1

    def close(self) -> None:
        """Give our descriptor back; the memory lives as long as QEMU has it."""
        os.close(self.descriptor)


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RamFileError("guest memory", f"cannot be {what} ({error.strerror})", "see the host's free memory") from error
