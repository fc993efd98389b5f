"""A copy of a stopped guest's memory as a sparse file: pages of zeros are holes in it, and stay holes where it is restored."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from collections.abc import Iterator

from architect.model.sizes import MIB, PAGE_BYTES

_STEP_BYTES = 16 * MIB
_ZEROS = bytes(PAGE_BYTES)


def save_ram(ram: int, image: int) -> int:
    """Copy the memfd `ram` of a guest that stands still to the empty file `image`; returns the bytes that are not zero."""
    size_bytes = os.fstat(ram).st_size
    os.ftruncate(image, size_bytes)
    copied = 0
    for start, end in data_extents(ram):
        for at in range(start, end, _STEP_BYTES):
            data = os.pread(ram, min(_STEP_BYTES, end - at), at)
            for first, last in _filled_runs(data):
                os.pwrite(image, memoryview(data)[first:last], at + first)
                copied += last - first
    return copied


def restore_ram(image: int, ram: int) -> int:
    """Copy what `image` holds to the memfd `ram`, which is empty; returns the bytes copied. Releases the GIL while it copies."""
    copied = 0
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(mmap.mmap(image, 0, prot=mmap.PROT_READ))
        view = stack.enter_context(memoryview(source))
        for start, end in data_extents(image):
            at = start
            while at < end:
                at += os.pwrite(ram, view[at:end], at)
            copied += end - start
    return copied


def data_extents(file: int) -> Iterator[tuple[int, int]]:
    """The parts of a file that are no holes, as (start, end) in bytes, ascending."""
    end = 0
    while True:
        try:
            start = os.lseek(file, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = os.lseek(file, start, os.SEEK_HOLE)
        yield start, end


def _filled_runs(data: bytes) -> Iterator[tuple[int, int]]:
    """Runs of pages that are not all zeros, as (start, end) in bytes of `data`, whose length is a multiple of a page."""
    first = -1
    for at in range(0, len(data), PAGE_BYTES):
        is_filled = data[at : at + PAGE_BYTES] != _ZEROS
        if is_filled and first < 0:
            first = at
        elif not is_filled and first >= 0:
            yield first, at
            first = -1
    if first >= 0:
        yield first, len(data)
