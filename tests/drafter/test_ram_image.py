"""RAM images keep what is there and nothing else."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from architect.drafter.ram_image import data_extents, restore_ram, save_ram
from architect.model.sizes import MIB, PAGE_BYTES

SIZE_BYTES = 20 * MIB
PAGES = SIZE_BYTES // PAGE_BYTES


@contextlib.contextmanager
def memory(size_bytes: int) -> Iterator[int]:
    descriptor = os.memfd_create("test")
    try:
        os.ftruncate(descriptor, size_bytes)
        yield descriptor
    finally:
        os.close(descriptor)


@settings(max_examples=25, deadline=None)
@given(pages=st.dictionaries(st.integers(0, PAGES - 1), st.booleans(), max_size=30))
def test_every_page_comes_back_and_zeros_take_no_room(pages: dict[int, bool]) -> None:
    with memory(SIZE_BYTES) as ram, memory(0) as image, memory(SIZE_BYTES) as restored:
        for page, filled in pages.items():
            os.pwrite(ram, (b"\1" if filled else b"\0") + bytes(PAGE_BYTES - 1), page * PAGE_BYTES)
        filled_bytes = sum(pages.values()) * PAGE_BYTES
        assert save_ram(ram, image) == filled_bytes
        assert os.fstat(image).st_size == SIZE_BYTES
        assert os.fstat(image).st_blocks * 512 == filled_bytes
        assert restore_ram(image, restored) == filled_bytes
        assert os.pread(restored, SIZE_BYTES, 0) == os.pread(ram, SIZE_BYTES, 0)
        assert os.fstat(restored).st_blocks * 512 == filled_bytes


def test_extents_are_in_order_and_apart() -> None:
    with memory(SIZE_BYTES) as ram:
        for page in (0, 1, 7, PAGES - 1):
            os.pwrite(ram, b"x", page * PAGE_BYTES)
        found = [(start // PAGE_BYTES, end // PAGE_BYTES) for start, end in data_extents(ram)]
        assert found == [(0, 2), (7, 8), (PAGES - 1, PAGES)]


def test_an_error_of_the_file_is_not_taken_for_its_end() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        list(data_extents(-1))
