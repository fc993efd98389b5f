"""Whoever reads finds the content before or the new one, whole; and a writing that fails, or dies, leaves nothing that stays."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from architect.runtime.whole_file import WRITERS_MAX, write_whole
from tests.no_room import no_file_longer_than

LONG = b"long " * 1000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.json"


def names(path: Path) -> list[str]:
    return sorted(each.name for each in path.parent.iterdir())


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def test_content_takes_the_place_of_what_was_there_and_nothing_is_left_beside_it(path: Path) -> None:
    for content in (LONG, b"short", b""):
        write_whole(path, content, is_flushed=True)
        assert (path.read_bytes(), names(path)) == (content, ["state.json"])
    write_whole(path, (part for part in (LONG, b"", LONG)))
    assert path.read_bytes() == LONG + LONG


def test_who_reads_while_it_is_written_finds_the_one_before(path: Path) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(3):
            yield b"new"
            assert path.read_bytes() == b"before"

    write_whole(path, b"before")
    write_whole(path, parts())
    assert path.read_bytes() == b"new" * 3


@pytest.mark.parametrize("left_mode", [None, 0o666])
def test_a_secret_is_nobody_elses_for_no_moment_whatever_the_umask_and_what_was_left_there(
    path: Path, left_mode: int | None
) -> None:
    beside = path.with_name("state.json.0.new")
    if left_mode is not None:
        beside.touch()
        beside.chmod(left_mode)

    def parts() -> Iterator[bytes]:
        for _ in range(2):
            assert mode(beside) == 0o600
            yield b"secret"

    umask = os.umask(0)
    try:
        write_whole(path, parts())
    finally:
        os.umask(umask)
    assert mode(path) == 0o600
    umask = os.umask(0o077)
    try:
        write_whole(path, b"for all", mode=0o644)
    finally:
        os.umask(umask)
    assert mode(path) == 0o644


def test_a_disk_without_room_leaves_what_was_there_and_nothing_beside_it(path: Path) -> None:
    write_whole(path, b"before")
    with no_file_longer_than(1000), pytest.raises(OSError, match="too large") as refused:
        write_whole(path, LONG, is_flushed=True)
    assert refused.value.errno == errno.EFBIG
    assert (path.read_bytes(), names(path)) == (b"before", ["state.json"])


@pytest.mark.parametrize("end", [KeyboardInterrupt, ValueError, SystemExit])
def test_whatever_ends_the_writing_leaves_what_was_there_and_nothing_beside_it(path: Path, end: type[BaseException]) -> None:
    def parts() -> Iterator[bytes]:
        yield LONG
        raise end

    write_whole(path, b"before")
    with pytest.raises(end):
        write_whole(path, parts())
    assert (path.read_bytes(), names(path)) == (b"before", ["state.json"])


def test_a_disk_that_fails_when_it_is_flushed_leaves_what_was_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        assert path.read_bytes() == b"before", "it is flushed before it has its name"
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    write_whole(path, b"before")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        write_whole(path, b"after", is_flushed=True)
    assert (path.read_bytes(), names(path)) == (b"before", ["state.json"])
    write_whole(path, b"after")
    assert path.read_bytes() == b"after", "who does not ask for it waits for no disk"


def test_a_name_that_cannot_be_replaced_is_refused_and_nothing_is_beside_it(path: Path) -> None:
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        write_whole(path, b"content")
    assert names(path) == ["state.json"]


def test_what_a_killed_writer_left_is_written_over_by_the_next_one(path: Path) -> None:
    program = """if True:
        import sys, time
        from pathlib import Path
        from architect.runtime.whole_file import write_whole
        def parts():
            yield b"half of it" * 1000
            print("ready", flush=True)
            time.sleep(600)
        write_whole(Path(sys.argv[1]), parts())
    """
    write_whole(path, b"before")
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        writer.send_signal(signal.SIGKILL)
    assert (path.read_bytes(), names(path)) == (b"before", ["state.json", "state.json.0.new"])
    write_whole(path, b"after")
    assert (path.read_bytes(), names(path)) == (b"after", ["state.json"])


def test_a_writer_in_the_middle_of_anothers_writing_disturbs_it_not_and_the_last_to_end_wins(path: Path) -> None:
    def parts() -> Iterator[bytes]:
        yield b"outer, "
        write_whole(path, b"inner")
        assert path.read_bytes() == b"inner"
        yield b"whole"

    write_whole(path, parts())
    assert (path.read_bytes(), names(path)) == (b"outer, whole", ["state.json"])


def test_what_many_writers_at_once_leave_is_whole_at_every_moment(path: Path) -> None:
    def write(writer: int) -> None:
        for _ in range(200):
            write_whole(path, (bytes([writer]) * 1500 for _ in range(2)))
            found = path.read_bytes()
            assert len(found) == 3000 and len(set(found)) == 1

    write_whole(path, b"\0" * 3000)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(8)))
    assert names(path) == ["state.json"]


def test_more_writers_than_there_are_names_for_are_refused(path: Path) -> None:
    with ExitStack() as held:
        for number in range(WRITERS_MAX):
            file = held.enter_context(path.with_name(f"state.json.{number}.new").open("wb"))
            fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match=f"{WRITERS_MAX} others"):
            write_whole(path, b"content")
    write_whole(path, b"content")
    assert path.read_bytes() == b"content"
