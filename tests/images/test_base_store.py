"""The store of base disks: what it takes, sends, refuses and leaves behind."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import stat
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from architect.errors import ConflictError, HostError, NotFoundError, UsageError
from architect.images.base_store import BaseStore, WrongBaseError

SIZE = 3 * 65536
CONTENT = b"".join((b"a" * 5000, bytes(70000), b"b" * 65536, bytes(SIZE - 140536)))
DIGEST = hashlib.sha256(CONTENT).hexdigest()


async def chunks(items: Iterable[tuple[int, bytes]]) -> AsyncIterator[tuple[int, bytes]]:
    for item in items:
        yield item


def add(store: BaseStore, content: bytes = CONTENT) -> str:
    async def adopt() -> str:
        async with store.workspace() as workspace:
            (workspace / "disk").write_bytes(content)
            return store.adopt(workspace / "disk").digest

    return asyncio.run(adopt())


def read(store: BaseStore, digest: str, chunk_bytes: int = 65536) -> list[tuple[int, bytes]]:
    async def collect() -> list[tuple[int, bytes]]:
        return [item async for item in store.read_chunks(digest, chunk_bytes)]

    return asyncio.run(collect())


def leftovers(store: BaseStore) -> list[str]:
    return [path.name for path in (store.root / "temporary").iterdir() if path.name != "lock"]


def test_a_file_is_kept_read_only_under_its_hash(tmp_path: Path) -> None:
    store = BaseStore(tmp_path / "store")
    digest = add(store)
    path = store.get(digest)
    assert digest == DIGEST and path is not None
    assert path.read_bytes() == CONTENT and stat.S_IMODE(path.stat().st_mode) == 0o444
    assert leftovers(store) == []


def test_what_is_not_there_is_none_and_cannot_be_read(tmp_path: Path) -> None:
    store = BaseStore(tmp_path)
    assert store.get(DIGEST) is None
    with pytest.raises(NotFoundError):
        read(store, DIGEST)


@pytest.mark.parametrize("digest", ["", "../x", "A" * 64, "0" * 63])
def test_a_digest_that_is_none_never_becomes_a_path(tmp_path: Path, digest: str) -> None:
    with pytest.raises(UsageError, match="not a digest"):
        BaseStore(tmp_path).get(digest)


def test_a_base_travels_as_its_data_without_zeros(tmp_path: Path) -> None:
    source, target = BaseStore(tmp_path / "a"), BaseStore(tmp_path / "b")
    digest = add(source)
    sent = read(source, digest, 4096)
    assert sum(len(data) for _, data in sent) < 80000
    assert all(data.count(0) < len(data) for _, data in sent)
    path = asyncio.run(target.import_chunks(digest, SIZE, chunks(sent)))
    assert path.read_bytes() == CONTENT and path == target.get(digest)
    assert target.used_bytes() < SIZE


@settings(max_examples=40, deadline=None)
@given(parts=st.lists(st.tuples(st.booleans(), st.integers(1, 9000)), max_size=8), chunk_bytes=st.integers(4096, 20000))
def test_any_content_arrives_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[bool, int]], chunk_bytes: int
) -> None:
    content = b"x" + b"".join(bytes(size) if zero else os.urandom(size) for zero, size in parts)
    root = tmp_path_factory.mktemp("stores")
    source, target = BaseStore(root / "a"), BaseStore(root / "b")
    digest = add(source, content)
    path = asyncio.run(target.import_chunks(digest, len(content), source.read_chunks(digest, chunk_bytes)))
    assert path.read_bytes() == content


def test_a_base_that_is_there_is_not_read_again(tmp_path: Path) -> None:
    store = BaseStore(tmp_path)
    digest = add(store)

    async def never() -> AsyncIterator[tuple[int, bytes]]:
        for item in list[tuple[int, bytes]]():
            yield item
        raise AssertionError("read")

    assert asyncio.run(store.import_chunks(digest, SIZE, never())) == store.get(digest)


@pytest.mark.parametrize(
    "sent",
    [
        [],
        [(0, b"a" * 5000)],
        [(0, CONTENT[:65536]), (65535, b"b")],
        [(65536, b"b"), (0, b"a")],
        [(SIZE - 1, b"ab")],
        [(-1, b"a")],
    ],
)
def test_a_wrong_base_is_refused_and_leaves_nothing(tmp_path: Path, sent: list[tuple[int, bytes]]) -> None:
    store = BaseStore(tmp_path)
    with pytest.raises(WrongBaseError):
        asyncio.run(store.import_chunks(DIGEST, SIZE, chunks(sent)))
    assert store.get(DIGEST) is None and leftovers(store) == [] and store.used_bytes() == 0


@pytest.mark.parametrize("size", [0, -1, 1 << 50])
def test_a_size_out_of_bounds_is_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(WrongBaseError, match="bounds"):
        asyncio.run(BaseStore(tmp_path).import_chunks(DIGEST, size, chunks([])))


def test_a_peer_that_goes_away_in_the_middle_leaves_nothing_and_its_own_error(tmp_path: Path) -> None:
    store = BaseStore(tmp_path)

    async def broken() -> AsyncIterator[tuple[int, bytes]]:
        yield 0, b"a" * 5000
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError):
        asyncio.run(store.import_chunks(DIGEST, SIZE, broken()))
    assert leftovers(store) == [] and store.used_bytes() == 0


def test_opening_removes_the_work_of_the_dead_and_not_of_the_living(tmp_path: Path) -> None:
    store = BaseStore(tmp_path)
    dead = tmp_path / "temporary" / "dead" / "work"
    dead.mkdir(parents=True)
    (dead / "disk.raw").write_bytes(b"x")

    async def live() -> None:
        async with store.workspace() as living:
            BaseStore(tmp_path)
            assert living.is_dir() and not dead.exists()

    asyncio.run(live())
    assert leftovers(store) == []


def test_pruning_keeps_what_is_named(tmp_path: Path) -> None:
    store = BaseStore(tmp_path)
    kept, dropped = add(store), add(store, b"other")
    assert store.prune({kept}) == 4096
    assert store.get(kept) and store.get(dropped) is None


def test_a_lock_admits_one_and_a_waiter_gives_up_in_time(tmp_path: Path) -> None:
    store = BaseStore(tmp_path)

    async def contend() -> None:
        async with store.lock("x", 1.0):
            with pytest.raises(ConflictError):
                async with store.lock("x", 0.01):
                    raise AssertionError("two holders")
            async with store.lock("y", 0.01):
                pass
        async with store.lock("x", 0.01):
            pass

    asyncio.run(contend())


def test_a_store_that_cannot_be_made_is_a_host_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(HostError):
        BaseStore(tmp_path / "file")


def test_the_workspace_is_locked_while_it_is_used(tmp_path: Path) -> None:
    store = BaseStore(tmp_path)

    async def work() -> None:
        async with store.workspace() as workspace:
            with (workspace.parent / "lock").open("r+") as file, pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    asyncio.run(work())
