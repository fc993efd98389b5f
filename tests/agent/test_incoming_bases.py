"""A base disk that comes in parts, beside other moves that bring the same one."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from architect.agent.host import Host
from architect.agent.move_shared import Bases
from architect.errors import PeerError
from architect.images.base_store import BaseStore

PART = 256 << 10
DATA = bytes(range(1, 256)) * 4112 + b"end of the disk!"
DIGEST = hashlib.sha256(DATA).hexdigest()


def incoming(store: BaseStore) -> Bases:
    return Bases(cast(Host, SimpleNamespace(bases=store)))


async def send(bases: Bases, begin: int = 0, end: int = len(DATA)) -> None:
    for offset in range(begin, end, PART):
        await bases.write(DIGEST, len(DATA), offset, DATA[offset : min(offset + PART, end)])


def test_a_base_that_another_move_has_brought_meanwhile_lets_the_rest_of_its_parts_pass(tmp_path: Path) -> None:
    async def test() -> None:
        store = BaseStore(tmp_path)
        late = incoming(store)
        assert await late.present_bytes(DIGEST, len(DATA)) == 0
        await send(incoming(store))
        await send(late)

    asyncio.run(test())


def test_moves_that_bring_the_same_base_at_once_all_bring_it(tmp_path: Path) -> None:
    async def test() -> bytes:
        store = BaseStore(tmp_path)
        await asyncio.gather(*(send(incoming(store)) for _ in range(4)))
        path = store.get(DIGEST)
        assert path is not None
        return path.read_bytes()

    assert asyncio.run(test()) == DATA


def test_a_part_that_does_not_follow_the_one_before_is_refused_and_a_first_one_begins_anew(tmp_path: Path) -> None:
    async def test() -> None:
        bases = incoming(BaseStore(tmp_path))
        await send(bases, end=2 * PART)
        with pytest.raises(PeerError, match="out of order"):
            await send(bases, begin=3 * PART)
        await send(bases)
        assert await bases.present_bytes(DIGEST, len(DATA)) == len(DATA)

    asyncio.run(test())
