"""Hash tree over guest RAM: SHA-256 of 4 KiB pages, of 16 pages (an extent), of 256 extents (a group), of all groups (the root).

Page leaves, so that the pause hashes only the pages that changed; groups, so that a root after few changes is cheap at any size
of RAM. The shape is fixed by the number of pages, which the root includes. A new tree is that of RAM that is all zeros.
`set_leaves` may run in several threads for different pages; a `root` beside it may or may not know of it.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from architect.model.sizes import PAGE_BYTES, PAGES_PER_EXTENT
from architect.silo.page_batch import HASH_BYTES
from architect.silo.page_runs import Bytes, Pages, is_one_run

EXTENTS_PER_GROUP = 256
_sha256 = hashlib.sha256
ZERO_PAGE_HASH = _sha256(bytes(PAGE_BYTES)).digest()
_ROOT_TAG = b"architect-memory-1"


def digest_of(hashes: bytes) -> bytes:
    """What a frame carries to vouch for its pages: the hash of their hashes."""
    return _sha256(hashes).digest()


class HashTree:
    """The tree of `page_count` pages.

    :param path: the file that holds the leaves, where they have to outlive the process; None for memory only.
    """

    def __init__(self, page_count: int, path: Path | None = None) -> None:
        self.page_count = page_count
        self.path = path
        leaf_count = -(-page_count // (PAGES_PER_EXTENT * EXTENTS_PER_GROUP)) * PAGES_PER_EXTENT * EXTENTS_PER_GROUP
        keeps = path is not None and path.exists() and path.stat().st_size == leaf_count * HASH_BYTES
        if path is None:
            self._leaves: Bytes = np.empty((leaf_count, HASH_BYTES), np.uint8)
        else:
            self._leaves = np.memmap(path, np.uint8, "r+" if keeps else "w+", shape=(leaf_count, HASH_BYTES))
        self._extents, self._groups = self._zero_levels(leaf_count)
        self._stale = np.zeros(len(self._extents), np.uint8)
        self._rehashing = threading.Lock()
        if keeps:
            self._stale[:] = 1
        else:
            self._leaves[:] = np.frombuffer(ZERO_PAGE_HASH, np.uint8)

    @staticmethod
    def _zero_levels(leaf_count: int) -> tuple[Bytes, Bytes]:
        extent = _sha256(ZERO_PAGE_HASH * PAGES_PER_EXTENT).digest()
        group = _sha256(extent * EXTENTS_PER_GROUP).digest()
        extent_count = leaf_count // PAGES_PER_EXTENT
        return _repeat(extent, extent_count), _repeat(group, extent_count // EXTENTS_PER_GROUP)

    def set_leaves(self, pages: Pages, hashes: bytes) -> None:
        """Say that `pages` now have these hashes, in this order."""
        where = slice(int(pages[0]), int(pages[0]) + len(pages)) if is_one_run(pages) else pages
        self._leaves[where] = np.frombuffer(hashes, np.uint8).reshape(-1, HASH_BYTES)
        self._mark(pages)

    def set_zero(self, pages: Pages) -> None:
        """Say that `pages` are now all zeros."""
        self._leaves[pages] = np.frombuffer(ZERO_PAGE_HASH, np.uint8)
        self._mark(pages)

    def _mark(self, pages: Pages) -> None:
        if len(pages) and is_one_run(pages):
            self._stale[int(pages[0]) // PAGES_PER_EXTENT : int(pages[-1]) // PAGES_PER_EXTENT + 1] = 1
        else:
            self._stale[pages // PAGES_PER_EXTENT] = 1

    def root(self) -> str:
        """The root, in hex; hashes what changed since the last call, so calls outside the pause make the one in it cheap."""
        with self._rehashing:
            extents = np.flatnonzero(self._stale.copy())
            self._stale[extents] = 0
            _rehash(self._leaves, self._extents, extents, PAGES_PER_EXTENT)
            _rehash(self._extents, self._groups, np.unique(extents // EXTENTS_PER_GROUP), EXTENTS_PER_GROUP)
            return self._root()

    def _root(self) -> str:
        return _sha256(_ROOT_TAG + self.page_count.to_bytes(8, "big") + self._groups.tobytes()).hexdigest()

    def delete(self) -> None:
        """Delete the leaves' file, if they have one."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _repeat(value: bytes, count: int) -> Bytes:
    return np.tile(np.frombuffer(value, np.uint8), (count, 1))


def _rehash(children: Bytes, parents: Bytes, changed: Pages, fan_out: int) -> None:
    if len(changed) == 0:
        return
    data, width = children.reshape(-1).data, fan_out * HASH_BYTES
    hashes: Iterable[bytes] = [_sha256(data[at * width : (at + 1) * width]).digest() for at in changed.tolist()]
    parents[changed] = np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, HASH_BYTES)
