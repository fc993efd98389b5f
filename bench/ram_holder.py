"""RAM holder: a process that maps a RAM file, as QEMU does (userfaultfd shim included), and fills it as told.

`python -m bench.ram_holder FD BYTES`: a line on standard input, an answer on standard output. `fill RUN STRIDE`: `RUN` pages of
every `STRIDE` have random bytes, no two pages the same; the others are holes.
"""

from __future__ import annotations

import mmap
import sys

import numpy as np

from architect.model.sizes import PAGE_BYTES

_BLOCK_PAGES = 4096


def main(words: list[str]) -> int:
    """Serve lines until standard input ends."""
    memory = mmap.mmap(int(words[0]), int(words[1]))
    print("ready", flush=True)
    for line in sys.stdin:
        run, stride = (int(word) for word in line.split()[1:])
        fill(memory, run, stride)
        print("done", flush=True)
    return 0


def fill(memory: mmap.mmap, run: int, stride: int) -> None:
    """Make `run` pages of every `stride` random, and holes of the others."""
    memory.madvise(mmap.MADV_REMOVE)
    ram = np.frombuffer(memory, np.uint8).reshape(-1, PAGE_BYTES)
    block = np.frombuffer(np.random.default_rng(1).bytes(_BLOCK_PAGES * PAGE_BYTES), np.uint8).reshape(-1, PAGE_BYTES)
    pages = np.flatnonzero(np.arange(len(ram)) % stride < run)
    for at in range(0, len(pages), _BLOCK_PAGES):
        part = pages[at : at + _BLOCK_PAGES]
        ram[part] = block[: len(part)]
        ram[part, :8] = part.astype("<u8").view(np.uint8).reshape(-1, 8)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
