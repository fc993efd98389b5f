"""The ownership log in a directory that all hosts share: one file per record, made by link(2).

::

    ROOT/VM/0000000007.json      record 7 of VM: JSON, at most 4 KiB, never changed
    ROOT/VM/.XXXXXXXX            a record on its way, or prepared; a crash may leave it, nothing ever reads it
    ROOT/ownership-log           says that this is the place, and not an empty mount point

link(2) is atomic and fails where the name exists, on local file systems and on NFS, and the file it names was written and flushed
before: so a record that can be seen is whole. The directory is flushed before any answer, so that what an answer says outlives a
crash of the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from architect.errors import ArchitectError, CapacityError, HostError, OutcomeUnknownError, UnavailableError, UsageError
from architect.migration.ownership_log import TermConflictError, check_successor, check_term
from architect.model.ids import VmId, check_name
from architect.model.ownership import OWNERSHIP_MARK, OwnershipRecord

RECORD_BYTES_MAX = 4096
ANSWER_DEADLINE_S = 10.0
_DIGITS = 10
_Answer = TypeVar("_Answer")
_OWNERSHIP_RECORD_DECODER = msgspec.json.Decoder(OwnershipRecord)


class DamagedRecordError(HostError):
    """A file of the log that is not the record that its name promises: the VM's owner cannot be known from it."""

    code = "damaged-record"

    def __init__(self, file: Path, cause: str) -> None:
        super().__init__(f"ownership record {file}", cause, "restore it from a copy; without it nobody may run this VM")
        self.file = file


class DirectoryOwnershipLog:
    """An `OwnershipLog` in the directory `root`, made where it is missing.

    :param is_shared: the directory comes from elsewhere and carries the file `OWNERSHIP_MARK`. Without it, as where a file
        system is not mounted, nothing is answered: an empty directory would say that nobody owns anything.
    """

    def __init__(self, root: Path, deadline_s: float = ANSWER_DEADLINE_S, *, is_shared: bool = False) -> None:
        self._root = root
        self._deadline_s = deadline_s
        self._is_shared = is_shared
        self._prepared: dict[VmId, tuple[OwnershipRecord, Path]] = {}

    async def prepare(self, record: OwnershipRecord) -> None:
        """See `OwnershipLog.prepare`: the content is on disk, under a name that nobody reads."""

        def write() -> Path:
            return _write_flushed(self._directory(record.vm), msgspec.json.encode(record))

        with contextlib.suppress(ArchitectError, OSError):
            path = await self._in_thread(write, self._silent(record.vm))
            _, left = self._prepared.pop(record.vm, (None, None))
            self._prepared[record.vm] = (record, path)
            if left is not None:
                left.unlink(missing_ok=True)

    async def create(self, record: OwnershipRecord) -> OwnershipRecord:
        """See `OwnershipLog.create`."""
        check_term(record.term, "ownership term")
        content = msgspec.json.encode(record)
        if len(content) > RECORD_BYTES_MAX or not record.writer or not record.writer.isalnum():
            raise UsageError(f"ownership record {record.term} of {record.vm}", "too long, or its writer is no word", "shorten it")
        unknown = OutcomeUnknownError(
            f"ownership record {record.term} of {record.vm}",
            f"the log at {self._root} did not answer within {self._deadline_s:.0f} s",
            "read it back before a retry",
        )
        return await self._in_thread(lambda: self._create(record, content), unknown)

    async def latest(self, vm: VmId) -> OwnershipRecord | None:
        """See `OwnershipLog.latest`."""
        return await self._in_thread(lambda: self._latest(vm), self._silent(vm))

    async def read(self, vm: VmId, term: int) -> OwnershipRecord | None:
        """See `OwnershipLog.read`."""
        check_term(term, "ownership term")
        return await self._in_thread(lambda: self._read(vm, term), self._silent(vm))

    def _create(self, record: OwnershipRecord, content: bytes) -> OwnershipRecord:
        directory = self._directory(record.vm)
        thing = f"ownership record {record.term} of {record.vm}"
        with _mapped(thing, self._root):
            if existing := self._read(record.vm, record.term):
                return existing
            latest = self._latest(record.vm)
            if latest is not None and latest.term >= record.term:
                # Written by a rival since the line above.
                return self._read_existing(record)
            check_successor(record, latest)
            _make_directory(directory)
            temporary = self._take_prepared(record) or _write_flushed(directory, content)
        try:
            with contextlib.suppress(FileExistsError):
                os.link(temporary, _file(directory, record.term))
            _flush_directory(directory)
        except OSError as error:
            raise OutcomeUnknownError(thing, str(error), "read it back before a retry") from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
        with _mapped(thing, self._root):
            return self._read_existing(record)

    def _take_prepared(self, record: OwnershipRecord) -> Path | None:
        """The file of this very record, if it was prepared and is still there. Once: after link(2) it is the record."""
        prepared, path = self._prepared.pop(record.vm, (None, None))
        if path is None or not path.exists():
            return None
        if prepared != record:
            path.unlink(missing_ok=True)
            return None
        return path

    def _latest(self, vm: VmId) -> OwnershipRecord | None:
        directory = self._directory(vm)
        with _mapped(f"ownership log of {vm}", self._root):
            try:
                names = [name for name in os.listdir(directory) if not name.startswith(".")]
            except FileNotFoundError:
                return None
            terms = sorted(_term(directory / name) for name in names)
            # Numbers without gaps start at 1, so the count is the last of them.
            if terms and terms[-1] != len(terms):
                raise DamagedRecordError(directory, f"{len(terms)} records, but the last is number {terms[-1]}")
            return self._read(vm, terms[-1]) if terms else None

    def _read(self, vm: VmId, term: int) -> OwnershipRecord | None:
        directory = self._directory(vm)
        file = _file(directory, term)
        with _mapped(f"ownership record {term} of {vm}", self._root):
            try:
                with file.open("rb") as opened:
                    content = opened.read(RECORD_BYTES_MAX + 1)
            except FileNotFoundError:
                return None
            # Whoever wrote it may not have flushed the name yet; what we have seen must not vanish in a crash.
            _flush_directory(directory)
        return _decode(content, file, vm, term)

    def _read_existing(self, record: OwnershipRecord) -> OwnershipRecord:
        existing = self._read(record.vm, record.term)
        if existing is None:
            raise TermConflictError(record, "its file vanished, though nothing may remove it")
        return existing

    def _directory(self, vm: VmId) -> Path:
        return self._root / check_name(vm, "VM")

    def _silent(self, vm: VmId) -> UnavailableError:
        cause = f"{self._root} did not answer within {self._deadline_s:.0f} s"
        return UnavailableError(f"ownership log of {vm}", cause, "check that file system, then try again")

    async def _in_thread(self, work: Callable[[], _Answer], late: UnavailableError) -> _Answer:
        """The answer of blocking work, or the error `late`; a file system that hangs keeps the thread, not the caller."""

        def checked() -> _Answer:
            if self._is_shared and not (self._root / OWNERSHIP_MARK).exists():
                raise UnavailableError(
                    f"ownership log at {self._root}", f"there is no {OWNERSHIP_MARK} in it", "see that it is mounted"
                )
            return work()

        try:
            return await asyncio.wait_for(asyncio.to_thread(checked), self._deadline_s)
        except TimeoutError as error:
            raise late from error


def _file(directory: Path, term: int) -> Path:
    return directory / f"{term:0{_DIGITS}d}.json"


def _term(file: Path) -> int:
    stem = file.name.removesuffix(".json")
    if len(stem) != _DIGITS or not (stem.isascii() and stem.isdigit()) or file.name == stem:
        raise DamagedRecordError(file, "its name is not that of a record")
    return int(stem)


def _decode(content: bytes, file: Path, vm: VmId, term: int) -> OwnershipRecord:
    if len(content) > RECORD_BYTES_MAX:
        raise DamagedRecordError(file, f"longer than {RECORD_BYTES_MAX} bytes")
    try:
        record = _OWNERSHIP_RECORD_DECODER.decode(content)
    except msgspec.DecodeError as error:
        raise DamagedRecordError(file, f"not a record: {error}") from error
    if (record.vm, record.term) != (vm, term):
        raise DamagedRecordError(file, f"it is record {record.term} of {record.vm}")
    return record


def _make_directory(directory: Path) -> None:
    """`mkdir -p`, each new name flushed."""
    if not directory.is_dir():
        if not directory.parent.is_dir():
            _make_directory(directory.parent)
        directory.mkdir(exist_ok=True)
        _flush_directory(directory.parent)


def _write_flushed(directory: Path, content: bytes) -> Path:
    """A new hidden file with the content; its name is used once: after link(2) it *is* the record, never to be opened again."""
    descriptor, name = tempfile.mkstemp(prefix=".", dir=directory)
    with open(descriptor, "wb") as opened:
        opened.write(content)
        os.fchmod(descriptor, 0o644)
        opened.flush()
        os.fsync(descriptor)
    return Path(name)


def _flush_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _mapped(thing: str, root: Path) -> Iterator[None]:
    """Errors of the operating system as ours: nothing was written."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CapacityError(thing, f"no room on the disk that holds {root}", "free some space there, then try again") from error
        raise HostError(thing, str(error), f"check {root}, its owner and its file system") from error
