"""Pages installed by the kernel through a userfaultfd of our own: where they land, and that what exists is left alone."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
from collections.abc import Iterator

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from architect.model.sizes import PAGE_BYTES
from architect.silo.userfault import MODE_MISSING, MODE_WP, Userfault, UserfaultError, open_userfault

pytestmark = pytest.mark.host
COUNT = 48
PARTS = (0, 20, 33)  # the first page of each part of the memory, mapped one by one
page_sets = st.sets(st.integers(0, COUNT - 1)).map(sorted)


class Watched(msgspec.Struct):
    """A mapping of shared memory that is watched; its file, to look at it without a fault."""

    file: int
    mappings: npt.NDArray[np.int64]
    userfault: Userfault


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    file = os.memfd_create("watched")
    os.ftruncate(file, COUNT * PAGE_BYTES)
    parts = [
        mmap.mmap(file, (end - first) * PAGE_BYTES, offset=first * PAGE_BYTES)
        for first, end in zip(PARTS, (*PARTS[1:], COUNT), strict=True)
    ]
    starts = [ctypes.addressof(ctypes.c_char.from_buffer(part)) for part in parts]
    userfault = Userfault(open_userfault())
    userfault.enable()
    for start, part in zip(starts, parts, strict=True):
        userfault.register(start, len(part), MODE_MISSING | MODE_WP)
    yield Watched(file, np.array(list(zip(PARTS, starts, strict=True)), np.int64), userfault)
    userfault.close()
    os.close(file)


def content(page: int, when: str) -> bytes:
    return hashlib.shake_128(f"{when} {page}".encode()).digest(PAGE_BYTES)


@settings(deadline=None)
@given(there=page_sets, come=page_sets)
def test_absent_pages_get_their_bytes_and_those_that_exist_keep_theirs(watched: Watched, there: list[int], come: list[int]) -> None:
    os.ftruncate(watched.file, 0)
    os.ftruncate(watched.file, COUNT * PAGE_BYTES)
    for page in there:
        os.pwrite(watched.file, content(page, "before"), page * PAGE_BYTES)
    source = np.frombuffer(b"".join(content(page, "new") for page in come) + b"-", np.uint8)
    exists = watched.userfault.install(watched.mappings, np.array(come, np.int64), source.ctypes.data)
    assert exists.tolist() == [page in there for page in come]
    for page in range(COUNT):
        expected = content(page, "before") if page in there else content(page, "new") if page in come else bytes(PAGE_BYTES)
        assert os.pread(watched.file, PAGE_BYTES, page * PAGE_BYTES) == expected, page


def test_an_address_outside_the_memory_is_refused(watched: Watched) -> None:
    source = np.zeros(PAGE_BYTES, np.uint8)
    with pytest.raises(UserfaultError, match="COPY"):
        watched.userfault.install(watched.mappings, np.array([COUNT + 100]), source.ctypes.data)
