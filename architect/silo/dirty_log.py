"""Dirty log: what was written since each consumer last took it. One log per VM, one page map per consumer.

A scan clears what it reads, so the log is the only place that scans: what it finds is in every consumer's map before anybody
uses it. A consumer (a move, an epoch) takes pages out of its map only when they are on their way, before it reads them: a write
after the read is found by the next scan. A new consumer's map is full: all RAM is copied once before the log is trusted. If this
process dies, what it had read and not kept is unknown: the next one fills every map it finds.

The log also learns how often each extent is written, exponentially decayed per scan, so that a move sends cold extents first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from architect.model.sizes import PAGES_PER_EXTENT
from architect.silo.page_map import PageMap
from architect.silo.page_runs import Pages

HEAT_DECAY = 0.5
_SUFFIX = ".dirty"


class DirtyLog:
    """The log of one VM.

    :param folder: where the maps are kept; on a tmpfs.
    :param written: scans: the pages written since its last call.
    """

    def __init__(self, page_count: int, folder: Path, written: Callable[[], Pages]) -> None:
        self._page_count = page_count
        self._folder = folder
        self._written = written
        self._lock = threading.Lock()
        self._consumers: dict[str, PageMap] = {}
        self.heat: npt.NDArray[np.float32] = np.zeros(-(-page_count // PAGES_PER_EXTENT), np.float32)
        self.last_count = 0
        for path in folder.glob(f"*{_SUFFIX}"):
            self._consumers[path.name.removesuffix(_SUFFIX)] = PageMap(page_count, path, full=True)

    def consumer(self, name: str) -> PageMap:
        """The map of a consumer, full if it is new."""
        with self._lock:
            if name not in self._consumers:
                self._consumers[name] = PageMap(self._page_count, self._folder / f"{name}{_SUFFIX}", full=True)
            return self._consumers[name]

    def drop(self, name: str) -> None:
        """Forget a consumer. Idempotent."""
        with self._lock:
            if (found := self._consumers.pop(name, None)) is not None:
                found.delete()

    def names(self) -> tuple[str, ...]:
        """The consumers."""
        return tuple(self._consumers)

    def scan(self) -> Pages:
        """Ask the kernel what was written, put it into every map, and return it."""
        with self._lock:
            pages = self._written()
            for consumer in self._consumers.values():
                consumer.add(pages)
            self.heat *= HEAT_DECAY
            self.heat[np.unique(pages // PAGES_PER_EXTENT)] += 1
            self.last_count = len(pages)
        return pages

    @contextmanager
    def held(self) -> Iterator[None]:
        """No scan happens inside: what is written inside is reported after it."""
        with self._lock:
            yield
