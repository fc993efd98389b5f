"""Page batches: what C does to many pages at once is what Python would do to each."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from architect.model.sizes import PAGE_BYTES
from architect.silo import page_batch
from architect.silo.page_batch import PageBatchError, find_data, hash_pages, punch_pages, read_pages, write_pages
from architect.silo.page_runs import Pages

FILE_PAGES = 64
page_sets = st.sets(st.integers(0, FILE_PAGES - 1)).map(lambda pages: np.array(sorted(pages), np.int64))


def _page(number: int) -> bytes:
    return hashlib.shake_128(number.to_bytes(8, "big")).digest(PAGE_BYTES)


@pytest.fixture(scope="module")
def file() -> Iterator[int]:
    descriptor = os.memfd_create("pages")
    yield descriptor
    os.close(descriptor)


def _reset(file: int) -> list[bytes]:
    pages = [_page(number) for number in range(FILE_PAGES)]
    os.pwrite(file, b"".join(pages), 0)
    return pages


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), max_size=70))
def test_hashes_are_those_of_sha256_for_any_number_of_pages(numbers: list[int]) -> None:
    pages = [_page(number) if number else bytes(PAGE_BYTES) for number in numbers]
    expected = b"".join(hashlib.sha256(page).digest() for page in pages)
    assert hash_pages(memoryview(b"".join(pages))) == expected


def test_a_changed_bit_changes_the_hash_of_its_page_alone() -> None:
    data = bytearray(b"".join(map(_page, range(20))))
    before = hash_pages(memoryview(data))
    for page in (0, 3, 15, 16, 19):
        data[page * PAGE_BYTES + 4095] ^= 1
        after = hash_pages(memoryview(data))
        changed = [at for at in range(20) if before[at * 32 : at * 32 + 32] != after[at * 32 : at * 32 + 32]]
        assert changed == [page]
        data[page * PAGE_BYTES + 4095] ^= 1


@settings(deadline=None)
@given(page_sets)
def test_pages_are_read_one_behind_the_other(file: int, pages: Pages) -> None:
    content = _reset(file)
    buffer = memoryview(bytearray(FILE_PAGES * PAGE_BYTES))
    read_pages(file, pages, buffer)
    assert bytes(buffer[: len(pages) * PAGE_BYTES]) == b"".join(content[page] for page in pages)
    assert not any(buffer[len(pages) * PAGE_BYTES :])


@settings(deadline=None)
@given(page_sets)
def test_pages_are_written_where_they_belong_and_nowhere_else(file: int, pages: Pages) -> None:
    content = _reset(file)
    for page in pages.tolist():
        content[page] = _page(1000 + page)
    write_pages(file, pages, memoryview(b"".join(content[page] for page in pages)))
    assert os.pread(file, FILE_PAGES * PAGE_BYTES, 0) == b"".join(content)


@settings(deadline=None)
@given(page_sets)
def test_punched_pages_are_zeros_and_the_others_stay(file: int, pages: Pages) -> None:
    content = _reset(file)
    punch_pages(file, pages)
    for page in pages.tolist():
        content[page] = bytes(PAGE_BYTES)
    assert os.pread(file, FILE_PAGES * PAGE_BYTES, 0) == b"".join(content)
    assert os.fstat(file).st_blocks * 512 == (FILE_PAGES - len(pages)) * PAGE_BYTES


@pytest.mark.parametrize("at", [0, 1, 7, 8, 2048, 4094, 4095])
def test_one_byte_anywhere_makes_a_page_data(at: int) -> None:
    buffer = bytearray(3 * PAGE_BYTES)
    assert find_data(memoryview(buffer)).tolist() == [False, False, False]
    buffer[PAGE_BYTES + at] = 1
    assert find_data(memoryview(buffer)).tolist() == [False, True, False]


def test_a_file_that_ends_before_the_page_is_an_error() -> None:
    descriptor = os.memfd_create("short")
    try:
        with pytest.raises(OSError, match="Input/output"):
            read_pages(descriptor, np.array([0, 5], np.int64), memoryview(bytearray(2 * PAGE_BYTES)))
    finally:
        os.close(descriptor)


def test_a_descriptor_that_takes_no_writes_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(PAGE_BYTES))
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="Bad file"):
            write_pages(descriptor, np.array([0, 2], np.int64), memoryview(bytes(2 * PAGE_BYTES)))
        with pytest.raises(OSError, match="Bad file"):
            punch_pages(descriptor, np.array([0], np.int64))
    finally:
        os.close(descriptor)


def test_a_library_that_was_not_built_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page_batch._library.cache_clear()
    monkeypatch.setattr(page_batch, "LIBRARY", tmp_path / "none.so")
    with pytest.raises(PageBatchError, match="make setup"):
        find_data(memoryview(bytes(PAGE_BYTES)))
    monkeypatch.undo()
    assert find_data(memoryview(bytes(PAGE_BYTES))).tolist() == [False]
