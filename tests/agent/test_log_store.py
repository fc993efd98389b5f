"""The output log: nothing lost, nothing twice, torn records cut off, text offsets that never change."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from architect.agent import log_store
from architect.agent.log_store import LogStore
from architect.errors import HostError, NotFoundError
from tests.no_room import no_file_longer_than


def whole_text(log: LogStore, offset: int = 0) -> bytes:
    parts: list[bytes] = []
    while True:
        start, text = log.read_text(offset)
        if not text:
            return b"".join(parts)
        parts.append(text)
        offset = start + len(text)


def test_records_sent_again_are_stored_once(tmp_path: Path) -> None:
    log = LogStore(tmp_path / "log")
    for seq, text in ((1, b"one"), (2, b"two"), (1, b"one"), (2, b"two"), (3, b"three")):
        log.append(1, seq, 0, text)
    assert whole_text(log) == b"onetwothree"
    assert whole_text(log, 4) == b"wothree"
    assert log.position == 3
    with pytest.raises(NotFoundError):
        log.read_text(100)


@settings(max_examples=60)
@given(st.lists(st.binary(max_size=200), max_size=30), st.integers(0, 400))
def test_a_file_cut_anywhere_opens_with_its_whole_records(
    tmp_path_factory: pytest.TempPathFactory, texts: list[bytes], cut: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    log = LogStore(path)
    for seq, text in enumerate(texts, 1):
        log.append(1, seq, 0, text)
    size_bytes = log.size_bytes
    log.close()
    with path.open("r+b") as file:
        file.truncate(max(0, size_bytes - cut))
    again = LogStore(path)
    assert whole_text(again) == b"".join(texts[: again.position])
    for seq, text in enumerate(texts, 1):
        again.append(1, seq, 0, text)
    assert whole_text(again) == b"".join(texts)
    again.close()


def test_the_log_moves_by_its_bytes(tmp_path: Path) -> None:
    source, target = LogStore(tmp_path / "source"), LogStore(tmp_path / "target")
    for seq in range(1, 100):
        source.append(2, seq, 5, b"line %d\n" % seq)
    for offset in range(0, source.size_bytes, 1000):
        target.write_file(offset, source.read_file(offset, 1000))
    target.reload()
    assert (target.position, whole_text(target)) == (99, whole_text(source))


def test_a_log_over_its_bound_drops_old_records_and_keeps_its_offsets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_store, "LOG_BYTES_MAX", 1 << 20)
    log = LogStore(tmp_path / "log")
    text = b"x" * 1000
    for seq in range(1, 2001):
        log.append(1, seq, 0, text)
        log.shrink()
    assert log.size_bytes <= (1 << 20) + 2000
    assert log.text_end == 2_000_000
    start, tail = log.read_text(0)
    assert start > 0 and set(tail) == {ord("x")}
    assert start + len(whole_text(log)) == log.text_end
    assert LogStore(tmp_path / "log").position == 2000


def test_a_log_that_shrinks_stays_its_owners_and_a_full_disk_leaves_it_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_store, "LOG_BYTES_MAX", 1 << 20)
    log = LogStore(tmp_path / "log")
    for seq in range(1, 1101):
        log.append(1, seq, 0, b"x" * 1000)
    before = log.size_bytes
    with no_file_longer_than(1 << 16), pytest.raises(HostError, match="make room"):
        log.shrink()
    assert (log.size_bytes, [path.name for path in tmp_path.iterdir()]) == (before, ["log"])
    log.shrink()
    assert log.size_bytes < before
    assert (tmp_path / "log").stat().st_mode & 0o077 == 0


def test_a_follower_is_woken_by_growth_and_by_the_end(tmp_path: Path) -> None:
    async def main() -> None:
        log = LogStore(tmp_path / "log")
        follower = asyncio.create_task(log.wait_grown())
        await asyncio.sleep(0)
        log.append(1, 1, 0, b"a")
        await follower
        follower = asyncio.create_task(log.wait_grown())
        await asyncio.sleep(0)
        log.end()
        await follower
        await log.wait_grown()
        assert log.is_closed

    asyncio.run(main())
