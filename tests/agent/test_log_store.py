"""The output log: nothing lost, nothing twice, torn records cut off, text offsets that never change."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from architect.agent import log_store
from architect.agent.log_store import LogStore
from architect.errors import NotFoundError


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
        for at, data in source.read_file(offset, 1000):
            target.write_file(at, data)
    target.reload()
    assert (target.position, whole_text(target)) == (99, whole_text(source))


def printed(log: LogStore, first: int, last: int) -> None:
    """The guest prints records of 1,000 bytes."""

    async def main() -> None:
        for seq in range(first, last + 1):
            await log.take(1, seq, 0, b"%7d" % seq + b"x" * 993)

    asyncio.run(main())


def taken_bytes(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_a_guest_that_prints_for_ever_fills_no_disk_and_what_stays_keeps_its_offset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_store, "OUTPUT_BYTES_MAX", 1 << 20)
    log = LogStore(tmp_path / "log")
    for last in range(500, 5001, 500):
        printed(log, last - 499, last)
        assert taken_bytes(tmp_path / "log") <= (1 << 20) + (16 << 10)
    assert log.text_end == 5_000_000
    start, tail = log.read_text(0)
    assert start > 4_000_000 and tail.startswith(b"%7d" % (start // 1000 + 1))
    assert start + len(whole_text(log)) == log.text_end
    assert log.text_end - start > (1 << 19) - (1 << 17), "the newer half is kept"
    again = LogStore(tmp_path / "log")
    assert (again.position, again.text_end, whole_text(again)) == (5000, 5_000_000, whole_text(log))
    assert (tmp_path / "log").stat().st_mode & 0o077 == 0


def test_a_reader_in_the_middle_of_what_is_dropped_goes_on_where_the_log_begins_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_store, "OUTPUT_BYTES_MAX", 1 << 20)
    log = LogStore(tmp_path / "log")
    printed(log, 1, 10)
    assert len(whole_text(log)) == 10_000
    printed(log, 11, 2000)
    start, text = log.read_text(10_000)
    assert start > 10_000 and text.startswith(b"%7d" % (start // 1000 + 1))


def test_a_move_whose_source_drops_what_it_has_not_sent_brings_all_that_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_store, "OUTPUT_BYTES_MAX", 1 << 20)
    source, target = LogStore(tmp_path / "source"), LogStore(tmp_path / "target")
    printed(source, 1, 1000)
    sent, printed_records = 0, 1000
    while sent < source.size_bytes:
        for at, data in source.read_file(sent, 100_000):
            target.write_file(at, data)
            sent = at + len(data)
        if printed_records < 4000:
            printed(source, printed_records + 1, printed_records + 500)
            printed_records += 500
    target.reload()
    assert (target.position, target.text_end) == (4000, source.text_end)
    assert whole_text(target).endswith(whole_text(source))
    assert whole_text(target).startswith(b"%7d" % (target.read_text(0)[0] // 1000 + 1))
    assert taken_bytes(tmp_path / "target") <= (1 << 20) * 3
    printed(target, 4001, 4010)
    assert target.text_end == 4_010_000


def test_a_file_system_that_makes_no_holes_costs_the_room_and_not_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(descriptor: int, offset: int, size_bytes: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(log_store, "OUTPUT_BYTES_MAX", 1 << 20)
    monkeypatch.setattr(log_store, "punch_hole", refuse)
    log = LogStore(tmp_path / "log")
    printed(log, 1, 2000)
    assert log.position == 2000
    assert 1 <= len(caplog.records) <= 3, "once for each half that is dropped"


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
