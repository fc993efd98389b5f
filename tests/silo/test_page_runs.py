"""Page lists: round trips, and refusal of what is none."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from architect.errors import PeerError
from architect.silo.page_runs import (
    LIST_BYTES_MAX,
    Pages,
    decode_runs,
    encode_parts,
    encode_runs,
    is_one_run,
    no_pages,
    pages_of,
    run_list,
    runs_of,
)  # fmt: skip

COUNT = 1 << 20
page_sets = st.one_of(
    st.sets(st.integers(0, COUNT - 1), max_size=200),
    st.tuples(st.integers(0, COUNT - 300), st.integers(1, 300)).map(lambda run: set(range(run[0], run[0] + run[1]))),
)


def _array(pages: set[int]) -> Pages:
    return np.array(sorted(pages), np.int64)


@given(page_sets)
def test_a_list_survives_the_wire(pages: set[int]) -> None:
    assert set(decode_runs(encode_runs(_array(pages)), COUNT, "peer").tolist()) == pages


@given(page_sets)
def test_runs_cover_the_pages_once_and_are_as_long_as_can_be(pages: set[int]) -> None:
    runs = run_list(_array(pages))
    assert [page for first, count in runs for page in range(first, first + count)] == sorted(pages)
    assert all(first + count < following for (first, count), (following, _) in itertools.pairwise(runs))


@given(page_sets.filter(bool))
def test_arrays_of_runs_are_the_same_as_lists_of_runs(pages: set[int]) -> None:
    array = _array(pages)
    firsts, counts = runs_of(array)
    assert list(zip(firsts.tolist(), counts.tolist(), strict=True)) == run_list(array)
    assert (pages_of(firsts, counts) == array).all()
    assert is_one_run(array) == (len(run_list(array)) == 1)


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_is_pages_within_the_range(data: bytes) -> None:
    try:
        pages = decode_runs(data, 100, "peer").tolist()
    except PeerError:
        return
    assert pages == sorted(set(pages))
    assert all(0 <= page < 100 for page in pages)


@pytest.mark.parametrize(
    "runs",
    [[(0, 0)], [(5, 1), (5, 1)], [(5, 3), (6, 1)], [(9, 1), (3, 1)], [(100, 1)], [(99, 2)], [(0, 1), (99, 2)], [(0xFFFFFFFF, 1)]],
)
def test_runs_that_are_empty_overlapping_descending_or_out_of_range_are_refused(runs: list[tuple[int, int]]) -> None:
    with pytest.raises(PeerError):
        decode_runs(np.array(runs, "<u4").tobytes(), 100, "peer")


def test_no_pages_are_no_bytes_and_one_empty_part() -> None:
    assert encode_runs(no_pages()) == b""
    assert encode_parts(no_pages()) == [b""]
    assert len(decode_runs(b"", 10, "peer")) == 0


def test_a_long_list_goes_in_parts_that_fit_into_messages() -> None:
    pages = np.arange(0, 400_000, 2)
    parts = encode_parts(pages)
    assert len(parts) > 1
    assert max(map(len, parts)) <= LIST_BYTES_MAX
    assert np.concatenate([decode_runs(part, 400_000, "peer") for part in parts]).tolist() == pages.tolist()
