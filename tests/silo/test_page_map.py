"""Page maps behave like sets, and keep what they have in a file."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from architect.silo import page_map
from architect.silo.page_map import PageMap

COUNT = 3000
pages = st.lists(st.sets(st.integers(0, COUNT - 1), max_size=50), max_size=8)


@given(pages, pages)
def test_a_map_is_a_set(added: list[set[int]], removed: list[set[int]]) -> None:
    made, model = PageMap(COUNT), set[int]()
    for more in added:
        made.add(np.array(sorted(more), np.int64))
        model |= more
    for less in removed:
        made.remove(np.array(sorted(less), np.int64))
        model -= less
    assert made.pages().tolist() == sorted(model)
    assert made.count() == len(model)
    some = np.arange(0, COUNT, 7)
    assert set(made.among(some).tolist()) == model & set(some.tolist())


def test_a_map_larger_than_a_chunk_is_read_whole() -> None:
    count = page_map.CHUNK_PAGES * 2 + 5
    made = PageMap(count)
    wanted = [0, page_map.CHUNK_PAGES - 1, page_map.CHUNK_PAGES, count - 1]
    made.add(np.array(wanted))
    assert made.pages().tolist() == wanted
    assert made.count() == 4
    assert PageMap(count, full=True).count() == count


def test_a_map_in_a_file_outlives_its_object_and_is_dropped_if_its_size_is_another(tmp_path: Path) -> None:
    path = tmp_path / "map"
    PageMap(100, path).add(np.array([3, 99]))
    assert PageMap(100, path).pages().tolist() == [3, 99]
    assert PageMap(101, path).count() == 0
    made = PageMap(101, path, full=True)
    made.delete()
    made.delete()
    assert not path.exists()


def test_reading_a_map_beside_a_thread_that_changes_it_fails_never() -> None:
    made, stop = PageMap(200_000), threading.Event()

    def change() -> None:
        some = np.arange(0, 200_000, 3)
        while not stop.is_set():
            made.add(some)
            made.remove(some)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(300):
            made.pages()
            made.count()
    finally:
        stop.set()
        thread.join()
