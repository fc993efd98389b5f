"""Page map: one byte per page, 1 for a page in the set. Kept in a tmpfs file where it has to outlive the process.

Bytes, not bits, so that threads may set and clear different pages without a lock and lose nothing. Work on the whole map goes in
chunks, so that no step holds the interpreter's lock for long.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from architect.silo.page_runs import Bytes, Pages, no_pages

CHUNK_PAGES = 1 << 18


class PageMap:
    """A set of pages out of `page_count`.

    :param path: the file that holds the map (an existing file of the right size keeps its content); None for memory only.
    """

    def __init__(self, page_count: int, path: Path | None = None, *, full: bool = False) -> None:
        self.page_count = page_count
        self.path = path
        if path is None:
            self.flags: Bytes = np.zeros(page_count, np.uint8)
        else:
            keeps = path.exists() and path.stat().st_size == page_count
            self.flags = np.memmap(path, np.uint8, "r+" if keeps else "w+", shape=(page_count,))
        if full:
            self.flags[:] = 1

    def add(self, pages: Pages) -> None:
        """Put `pages` in."""
        self.flags[pages] = 1

    def remove(self, pages: Pages) -> None:
        """Take `pages` out."""
        self.flags[pages] = 0

    def fill(self) -> None:
        """Put all pages in."""
        self.flags[:] = 1

    def among(self, pages: Pages) -> Pages:
        """Those of `pages` that are in the set."""
        found: Pages = pages[self.flags[pages] != 0]
        return found

    def pages(self) -> Pages:
        """All pages of the set."""
        found = list(self._chunks())
        return np.concatenate(found) if found else no_pages()

    def _chunks(self) -> Iterator[Pages]:
        for start in range(0, self.page_count, CHUNK_PAGES):
            # A copy: numpy fails if another thread changes the number of them while it counts.
            yield np.flatnonzero(self.flags[start : start + CHUNK_PAGES].copy()) + start

    def count(self) -> int:
        """How many pages are in the set."""
        return sum(int(np.count_nonzero(self.flags[at : at + CHUNK_PAGES])) for at in range(0, self.page_count, CHUNK_PAGES))

    def delete(self) -> None:
        """Delete the map's file, if it has one."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
