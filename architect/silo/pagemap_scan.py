"""PAGEMAP_SCAN: which pages of a process were written since they were last asked about; asking protects them again.

Source: Documentation/admin-guide/mm/pagemap.rst. Reading and clearing is one step in the kernel, per page: a write is in this
answer or in the next one, never in none.
"""

from __future__ import annotations

import ctypes
import os

import numpy as np

from architect.errors import HostError
from architect.model.sizes import PAGE_BYTES
from architect.silo.page_runs import Pages, no_pages, pages_of

_SCAN = 0xC0606610
_WP_MATCHING, _CHECK_WPASYNC = 1, 2
_PAGE_IS_WRITTEN = 2
_REGIONS_MAX = 1 << 15
_PAGES_MAX = 1 << 18

_libc = ctypes.CDLL(None, use_errno=True)
_ioctl = _libc.ioctl
_ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]
_Arguments = ctypes.c_uint64 * 12


class PagemapError(HostError):
    """The kernel refused a scan."""


class PagemapScanner:
    """Scans one process. Not for two threads at once.

    :param pid: the process whose pages are asked about.
    """

    def __init__(self, pid: int | str) -> None:
        try:
            self._descriptor = os.open(f"/proc/{pid}/pagemap", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise PagemapError(f"process {pid}", f"no access to its page map ({error.strerror})", "run as root") from error
        self._regions = np.empty((_REGIONS_MAX, 3), np.uint64)

    def written(self, start: int, end: int) -> Pages:
        """Pages written in the address range, counted from `start`; clears what it reports.

        Raises:
            PagemapError: the kernel has no PAGEMAP_SCAN, or the range is not tracked.
        """
        found, at = [], start
        while at < end:
            pages, at = self._scan(start, at, end)
            found.append(pages)
        return np.concatenate(found) if found else no_pages()

    def _scan(self, start: int, at: int, end: int) -> tuple[Pages, int]:
        scan = _Arguments(
            96, _WP_MATCHING | _CHECK_WPASYNC, at, end, 0, self._regions.ctypes.data, _REGIONS_MAX, _PAGES_MAX,
            0, _PAGE_IS_WRITTEN, 0, _PAGE_IS_WRITTEN,
        )  # fmt: skip
        count = _ioctl(self._descriptor, _SCAN, ctypes.byref(scan))
        if count < 0:
            raise PagemapError("PAGEMAP_SCAN", f"the kernel refused ({os.strerror(ctypes.get_errno())})", "run Linux 6.7 or newer")
        regions = self._regions[:count].astype(np.int64)
        firsts = (regions[:, 0] - start) // PAGE_BYTES
        return pages_of(firsts, (regions[:, 1] - regions[:, 0]) // PAGE_BYTES), int(scan[4])

    def close(self) -> None:
        """Close the page map."""
        os.close(self._descriptor)
