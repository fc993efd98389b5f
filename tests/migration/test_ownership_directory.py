"""The ownership log in a directory: its files, damage, crashes and rivals in other processes."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import threading
from multiprocessing.synchronize import Barrier
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from architect.errors import HostError, OutcomeUnknownError, UnavailableError, UsageError
from architect.migration.ownership_directory import RECORD_BYTES_MAX, DamagedRecordError, DirectoryOwnershipLog
from architect.model.ids import HostName
from architect.model.ownership import OWNERSHIP_MARK, OwnershipRecord, RecordKind
from architect.testing.ownership_conformance import VM, record


def latest(root: Path) -> OwnershipRecord | None:
    return asyncio.run(DirectoryOwnershipLog(root).latest(VM))


def create(root: Path, wanted: OwnershipRecord) -> OwnershipRecord:
    return asyncio.run(DirectoryOwnershipLog(root).create(wanted))


def file_of(root: Path, term: int) -> Path:
    return root / VM / f"{term:010d}.json"


def test_a_record_is_one_file_and_nothing_else_stays(tmp_path: Path) -> None:
    create(tmp_path, record(1))
    assert [path.name for path in (tmp_path / VM).iterdir()] == ["0000000001.json"]
    assert msgspec.json.decode(file_of(tmp_path, 1).read_bytes(), type=OwnershipRecord) == record(1)


def test_a_prepared_record_is_seen_by_nobody_until_it_is_created(tmp_path: Path) -> None:
    log = DirectoryOwnershipLog(tmp_path)
    create(tmp_path, record(1))
    asyncio.run(log.prepare(record(2)))
    assert latest(tmp_path) == record(1) and asyncio.run(log.read(VM, 2)) is None
    hidden = {path.stat().st_ino for path in (tmp_path / VM).iterdir() if path.name.startswith(".")}
    assert asyncio.run(log.create(record(2))) == record(2) == latest(tmp_path)
    assert {file_of(tmp_path, 2).stat().st_ino} == hidden, "it is the very file that was flushed before"
    assert sorted(path.name for path in (tmp_path / VM).iterdir()) == ["0000000001.json", "0000000002.json"]


def test_a_prepared_record_decides_nothing(tmp_path: Path) -> None:
    log = DirectoryOwnershipLog(tmp_path)
    create(tmp_path, record(1))
    asyncio.run(log.prepare(record(2)))
    rival = msgspec.structs.replace(record(2), writer="rival", kind=RecordKind.RUN)
    assert create(tmp_path, rival) == rival
    assert asyncio.run(log.create(record(2))) == rival


def test_another_record_than_the_prepared_one_has_its_own_content_and_one_that_was_swept_away_is_written_anew(
    tmp_path: Path,
) -> None:
    log = DirectoryOwnershipLog(tmp_path)
    create(tmp_path, record(1))
    other = msgspec.structs.replace(record(2), writer="other")
    asyncio.run(log.prepare(record(2)))
    assert asyncio.run(log.create(other)) == other == latest(tmp_path)
    asyncio.run(log.prepare(record(3)))
    for path in (tmp_path / VM).glob(".*"):
        path.unlink()
    assert asyncio.run(log.create(record(3))) == record(3) == latest(tmp_path)


def test_what_cannot_be_prepared_is_no_error(tmp_path: Path) -> None:
    asyncio.run(DirectoryOwnershipLog(tmp_path / "none").prepare(record(1)))


@pytest.mark.parametrize("content", [b"", b"{", b"null", b'{"vm":"vm-0123456789ab"}', b"x" * (RECORD_BYTES_MAX + 1)])
def test_a_damaged_record_is_named_and_never_guessed(tmp_path: Path, content: bytes) -> None:
    create(tmp_path, record(1))
    file_of(tmp_path, 1).write_bytes(content)
    with pytest.raises(DamagedRecordError, match="0000000001"):
        latest(tmp_path)
    for term in (1, 2):
        with pytest.raises(DamagedRecordError, match="0000000001"):
            create(tmp_path, record(term))


@settings(deadline=None)
@given(content=st.binary(max_size=300))
def test_any_bytes_are_a_record_or_damage(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    root = tmp_path_factory.mktemp("log")
    file_of(root, 1).parent.mkdir()
    file_of(root, 1).write_bytes(content)
    with pytest.raises(DamagedRecordError):
        latest(root)


def test_a_record_of_another_vm_or_number_is_damage(tmp_path: Path) -> None:
    create(tmp_path, record(1))
    file_of(tmp_path, 2).write_bytes(file_of(tmp_path, 1).read_bytes())
    with pytest.raises(DamagedRecordError, match="it is record 1 of"):
        latest(tmp_path)


def test_a_missing_record_in_the_middle_is_damage(tmp_path: Path) -> None:
    for term in (1, 2, 3):
        create(tmp_path, record(term, f"w{term}"))
    file_of(tmp_path, 2).unlink()
    with pytest.raises(DamagedRecordError, match="2 records, but the last is number 3"):
        latest(tmp_path)


@pytest.mark.parametrize("name", ["x.json", "1.json", "0000000001", "000000000².json"])
def test_a_foreign_file_in_the_log_is_damage(tmp_path: Path, name: str) -> None:
    create(tmp_path, record(1))
    (tmp_path / VM / name).write_text("x")
    with pytest.raises(DamagedRecordError, match="not that of a record"):
        latest(tmp_path)


def test_what_a_crash_left_on_its_way_is_never_read(tmp_path: Path) -> None:
    create(tmp_path, record(1))
    (tmp_path / VM / ".w2").write_bytes(b'{"half')
    assert latest(tmp_path) == record(1)
    assert create(tmp_path, record(2, "w2")) == record(2, "w2")


def test_a_record_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="too long"):
        create(tmp_path, record(1, host="h" * RECORD_BYTES_MAX))


@pytest.mark.parametrize("writer", ["", "../x", "a/b", "a b"])
def test_a_writer_never_becomes_a_path(tmp_path: Path, writer: str) -> None:
    with pytest.raises(UsageError, match="writer"):
        create(tmp_path, record(1, writer))


def _race(root: str, name: str, count: int, start: Barrier, results: str) -> None:
    log = DirectoryOwnershipLog(Path(root))
    answers = []
    for term in range(1, count + 1):
        start.wait(30)
        wanted = OwnershipRecord(VM, term, RecordKind.RUN, HostName(name), f"{name.replace('-', '')}t{term}")
        answers.append(asyncio.run(log.create(wanted)).writer)
    Path(results, name).write_text("\n".join(answers))


def test_rivals_in_other_processes_see_one_winner_for_every_number(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    names, count = ("host-a", "host-b", "host-c"), 30
    start = context.Barrier(len(names))
    results = tmp_path / "results"
    results.mkdir()
    rivals = [context.Process(target=_race, args=(str(tmp_path / "log"), name, count, start, str(results))) for name in names]
    for rival in rivals:
        rival.start()
    for rival in rivals:
        rival.join(60)
    assert [rival.exitcode for rival in rivals] == [0, 0, 0]
    answers = [(results / name).read_text().split() for name in names]
    assert answers[0] == answers[1] == answers[2] and len(answers[0]) == count


def test_a_log_that_cannot_be_written_is_a_host_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(HostError):
        create(tmp_path / "file", record(1))


def test_a_file_system_that_hangs_holds_nobody_up(tmp_path: Path) -> None:
    """A FIFO in the place of a record: opening it blocks until somebody writes."""
    (tmp_path / VM).mkdir()
    os.mkfifo(file_of(tmp_path, 1))
    log = DirectoryOwnershipLog(tmp_path, deadline_s=0.05)
    release = threading.Timer(0.3, lambda: file_of(tmp_path, 1).open("r+b", buffering=0).close())
    release.start()

    async def ask() -> None:
        with pytest.raises(UnavailableError) as caught:
            await log.read(VM, 1)
        assert not isinstance(caught.value, OutcomeUnknownError)
        with pytest.raises(OutcomeUnknownError):
            await log.create(record(1))

    asyncio.run(ask())
    release.join()


def test_a_log_whose_file_system_is_not_mounted_says_nothing(tmp_path: Path) -> None:
    """An empty mount point would say that nobody owns anything, and take the next first record."""
    log = DirectoryOwnershipLog(tmp_path, is_shared=True)
    with pytest.raises(UnavailableError, match="mounted"):
        asyncio.run(log.latest(VM))
    with pytest.raises(UnavailableError, match="mounted"):
        asyncio.run(log.read(VM, 1))
    with pytest.raises(UnavailableError, match="mounted"):
        asyncio.run(log.create(record(1)))
    assert not list(tmp_path.iterdir())
    (tmp_path / OWNERSHIP_MARK).touch()
    assert asyncio.run(log.latest(VM)) is None
