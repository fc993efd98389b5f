"""Page batch: work on many pages in one call of C (`native/page_batch.c`), without the interpreter's lock.

For few pages Python's own calls are as fast and hand the lock over less often; who has one run of pages, or five, uses those.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from architect.errors import HostError
from architect.model.sizes import PAGE_BYTES

LIBRARY = Path(__file__).parent.parent / "artifacts" / "page_batch.so"
HASH_BYTES = 32
WIDE_PAGES_MIN = 6
_sha256 = hashlib.sha256


class PageBatchError(HostError):
    """The C part cannot be loaded."""


@functools.cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        raise PageBatchError(str(LIBRARY), f"cannot be loaded ({error})", "run `make setup`") from error
    for name in ("read_pages", "write_pages"):
        getattr(library, name).argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_long, ctypes.c_void_p]
    library.punch_pages.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_long]
    library.install_pages.argtypes = [ctypes.c_int, *(ctypes.c_void_p, ctypes.c_long) * 2, ctypes.c_void_p, ctypes.c_void_p]
    for name in ("hash_pages", "find_data"):
        getattr(library, name).argtypes = [ctypes.c_void_p, ctypes.c_long, ctypes.c_void_p]
        getattr(library, name).restype = ctypes.c_long
    return library


def read_pages(descriptor: int, pages: npt.NDArray[np.int64], buffer: memoryview) -> None:
    """Read `pages` (ascending) of a file one behind the other into `buffer`.

    Raises:
        OSError: the kernel refused, or the file ends before.
    """
    assert len(buffer) >= len(pages) * PAGE_BYTES
    numbers = np.ascontiguousarray(pages, np.int64)
    _check(_library().read_pages(descriptor, numbers.ctypes.data, len(numbers), _address(buffer)))


def write_pages(descriptor: int, pages: npt.NDArray[np.int64], data: memoryview) -> None:
    """Write `data` to `pages` (ascending) of a file.

    Raises:
        OSError: the kernel refused.
    """
    assert len(data) >= len(pages) * PAGE_BYTES
    numbers = np.ascontiguousarray(pages, np.int64)
    _check(_library().write_pages(descriptor, numbers.ctypes.data, len(numbers), _address(data)))


def punch_pages(descriptor: int, pages: npt.NDArray[np.int64]) -> None:
    """Make holes of `pages` (ascending) of a file.

    Raises:
        OSError: the kernel refused.
    """
    numbers = np.ascontiguousarray(pages, np.int64)
    _check(_library().punch_pages(descriptor, numbers.ctypes.data, len(numbers)))


def install_pages(
    userfault: int, mappings: npt.NDArray[np.int64], pages: npt.NDArray[np.int64], source: int
) -> npt.NDArray[np.bool_]:
    """Make `pages` (ascending) of another process's memory present.

    Their bytes lie at our address `source`, one page behind the other.

    :param userfault: that process's.
    :param mappings: a row for each part of the memory, ascending: its first page, its address there.

    Returns for each page whether it existed; such a page is left as it is.

    Raises:
        OSError: the kernel refused.
    """
    numbers = np.ascontiguousarray(pages, np.int64)
    exists = np.zeros(len(numbers), np.bool_)
    _check(
        _library().install_pages(
            userfault, mappings.ctypes.data, len(mappings), numbers.ctypes.data, len(numbers), source, exists.ctypes.data
        )
    )
    return exists


def find_data(buffer: memoryview) -> npt.NDArray[np.bool_]:
    """For each page in `buffer` whether any of its bytes is not zero."""
    count = len(buffer) // PAGE_BYTES
    found = np.empty(count, np.bool_)
    _library().find_data(_address(buffer), count, found.ctypes.data)
    return found


def hash_pages(data: memoryview) -> bytes:
    """The SHA-256 hashes of the pages in `data` (whole pages), one behind the other."""
    count, done = len(data) // PAGE_BYTES, 0
    hashes = np.empty(count * HASH_BYTES, np.uint8)
    if count >= WIDE_PAGES_MIN:
        done = _library().hash_pages(_address(data), count, hashes.ctypes.data)
    rest = [_sha256(data[at : at + PAGE_BYTES]).digest() for at in range(done * PAGE_BYTES, len(data), PAGE_BYTES)]
    return hashes[: done * HASH_BYTES].tobytes() + b"".join(rest)


def _address(buffer: memoryview) -> int:
    address: int = np.frombuffer(buffer, np.uint8).__array_interface__["data"][0]
    return address


def _check(number: int) -> None:
    if number:
        raise OSError(number, os.strerror(number))
