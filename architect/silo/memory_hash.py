"""The root of guest memory as it is: reads and hashes every page, with no regard to what any tree believes."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from architect.model.sizes import PAGE_BYTES
from architect.silo.merkle import HashTree
from architect.silo.page_batch import hash_pages
from architect.silo.page_runs import Pages
from architect.silo.ram_file import RamFile

_BATCH_PAGES = 64
_THREADS_MAX = 4


def hash_memory(ram: RamFile) -> str:
    """The root, in hex. Holes are zeros and are not read; nothing is made present by it."""
    tree = HashTree(ram.page_count)
    present = ram.present().pages()
    threads = min(_THREADS_MAX, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads, "memory-hash") as pool:
        for part in [pool.submit(_hash_pages, ram, tree, pages) for pages in np.array_split(present, threads)]:
            part.result()
    return tree.root()


def _hash_pages(ram: RamFile, tree: HashTree, pages: Pages) -> None:
    buffer = memoryview(bytearray(_BATCH_PAGES * PAGE_BYTES))
    for at in range(0, len(pages), _BATCH_PAGES):
        batch = pages[at : at + _BATCH_PAGES]
        length = ram.read(batch, buffer)
        tree.set_leaves(batch, hash_pages(buffer[:length]))
