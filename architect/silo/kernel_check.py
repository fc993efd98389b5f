"""Self-check of the kernel: a page is tracked for real, so that a missing feature is named at the start and not met in a move."""

from __future__ import annotations

import ctypes
import mmap
import os

from architect.errors import HostError
from architect.model.sizes import PAGE_BYTES
from architect.silo.pagemap_scan import PagemapScanner
from architect.silo.userfault import DEVICE, FEATURES, MODE_MISSING, MODE_WP, Userfault, open_userfault, supported_features


class KernelError(HostError):
    """This kernel cannot track guest memory."""


def check_kernel() -> None:
    """Track one page of our own; returns if that works.

    Raises:
        KernelError: it does not; names what is missing.
    """
    try:
        uffd = open_userfault()
    except OSError as error:
        raise _lacks(f"{DEVICE} ({error.strerror})") from error
    try:
        features = supported_features(uffd)
    finally:
        os.close(uffd)
    missing = [name for name, bit in FEATURES.items() if not features & bit]
    if missing:
        raise _lacks("userfaultfd features " + ", ".join(missing))
    if _tracked_pages() != [0]:
        raise _lacks("exact write tracking: one written page was not reported as such")


def _tracked_pages() -> list[int]:
    memory = os.memfd_create("architect-check", os.MFD_CLOEXEC)
    uffd = Userfault(open_userfault())
    scanner = PagemapScanner("self")
    try:
        os.ftruncate(memory, 2 * PAGE_BYTES)
        os.pwrite(memory, b"\1" * 2 * PAGE_BYTES, 0)
        mapping = mmap.mmap(memory, 2 * PAGE_BYTES)
        anchor = ctypes.c_char.from_buffer(mapping)
        address = ctypes.addressof(anchor)
        uffd.enable()
        uffd.register(address, 2 * PAGE_BYTES, MODE_MISSING | MODE_WP)
        uffd.write_protect(address, 2 * PAGE_BYTES)
        mapping[5] = 7
        return [int(page) for page in scanner.written(address, address + 2 * PAGE_BYTES)]
    finally:
        scanner.close()
        uffd.close()
        os.close(memory)


def _lacks(what: str) -> KernelError:
    return KernelError("this host's kernel", f"lacks {what}", "run Linux 6.7 or newer with CONFIG_USERFAULTFD, as root")
