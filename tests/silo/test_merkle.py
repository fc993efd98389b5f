"""The hash tree: against a plain computation, and kept up to date."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from architect.silo.merkle import EXTENTS_PER_GROUP, HashTree, digest_of
from architect.silo.page_batch import hash_pages

PAGE = 4096


def _hash(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _plain_root(ram: dict[int, bytes], page_count: int) -> str:
    """The definition, without any cache."""
    zero = _hash(bytes(PAGE))
    group_pages = 16 * EXTENTS_PER_GROUP
    leaves = [_hash(ram[page]) if page in ram else zero for page in range(-(-page_count // group_pages) * group_pages)]
    extents = [_hash(b"".join(leaves[at : at + 16])) for at in range(0, len(leaves), 16)]
    groups = [_hash(b"".join(extents[at : at + EXTENTS_PER_GROUP])) for at in range(0, len(extents), EXTENTS_PER_GROUP)]
    return _hash(b"architect-memory-1" + page_count.to_bytes(8, "big") + b"".join(groups)).hex()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9000), st.lists(st.tuples(st.integers(0, 8999), st.integers(0, 3)), max_size=30), st.booleans())
def test_the_root_is_that_of_the_definition_however_it_was_reached(
    page_count: int, writes: list[tuple[int, int]], ask_between: bool
) -> None:
    tree, ram = HashTree(page_count), dict[int, bytes]()
    for page, kind in writes:
        if page >= page_count:
            continue
        if kind == 0:
            ram.pop(page, None)
            tree.set_zero(np.array([page]))
        else:
            ram[page] = bytes([kind]) * PAGE
            tree.set_leaves(np.array([page]), _hash(ram[page]))
        if ask_between:
            tree.root()
    assert tree.root() == _plain_root(ram, page_count)


def test_any_changed_byte_changes_the_root() -> None:
    tree = HashTree(5000)
    roots = {tree.root()}
    for page in (0, 15, 16, 4095, 4096, 4999):
        data = bytearray(PAGE)
        data[random.Random(page).randrange(PAGE)] = 1
        tree.set_leaves(np.array([page]), hash_pages(memoryview(data)))
        roots.add(tree.root())
    assert len(roots) == 7


def test_scattered_and_contiguous_pages_are_set_alike() -> None:
    data = bytes(range(256)) * 16 * 5
    hashes = hash_pages(memoryview(data))
    assert len(hashes) == 5 * 32
    one, other = HashTree(100), HashTree(100)
    one.set_leaves(np.arange(30, 35), hashes)
    for number in range(5):
        other.set_leaves(np.array([30 + number, 90 + number][:1]), hashes[number * 32 : number * 32 + 32])
    assert one.root() == other.root()
    one.set_leaves(np.array([1, 5, 17, 33, 99]), hashes)
    assert one.root() != other.root()
    one.set_zero(np.array([1, 5, 17, 99]))
    assert one.root() == other.root()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_digest_depends_on_the_order_of_the_pages(order: tuple[int, int]) -> None:
    pages = [bytes([number]) * PAGE for number in (1, 2)]
    digest = digest_of(hash_pages(memoryview(b"".join(pages[number] for number in order))))
    assert (digest == digest_of(hash_pages(memoryview(b"".join(pages))))) == (order == (0, 1))


def test_leaves_in_a_file_give_the_same_root_to_the_next_process(tmp_path: Path) -> None:
    path = tmp_path / "leaves"
    tree = HashTree(5000, path)
    tree.set_leaves(np.array([4321]), bytes(32))
    root = tree.root()
    assert HashTree(5000, path).root() == root != HashTree(5000).root()
    tree.delete()
    assert not path.exists()
