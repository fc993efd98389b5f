"""Kept memory: how much of what the product's own modules have allocated is still there, to see what grows with each move.

Allocations count where they were made: those of fakes, of the simulated world and of libraries do not, decoded messages do.
"""

from __future__ import annotations

import contextlib
import gc
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import architect

OURS = Path(architect.__file__).parent
FILTERS = [tracemalloc.Filter(True, f"{OURS}/*"), tracemalloc.Filter(False, f"{OURS}/testing/*")]


@contextlib.contextmanager
def counting_memory() -> Iterator[None]:
    """What is allocated within the block is counted."""
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


def kept_bytes() -> int:
    """What there is now, of what was allocated since the counting began and has not become garbage."""
    gc.collect()
    kept = tracemalloc.take_snapshot().filter_traces(FILTERS)
    return sum(trace.size for trace in kept.traces)
