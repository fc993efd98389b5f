"""The VM's output on this host: an append-only file of records, which moves with the VM.

File: 16 bytes of header (magic, text offset of the first record), then records: ``u64 seq | u64 realtime_ns | u32 stream | u32
length | data``, little-endian. `seq` is the guest channel's record number, so the file itself says what to acknowledge: a record is
in the file whole or, after a crash in the middle of a write, cut off at the next open and sent again by the guest. Users see the
text of all records joined; its offsets never change, also when old records are dropped to keep the file bounded.
"""

from __future__ import annotations

import asyncio
import os
import struct
import threading
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path

from architect.errors import HostError, NotFoundError
from architect.runtime.whole_file import write_whole

MAGIC = 0x31474F4C48435241  # "ARCHLOG1"
HEADER = struct.Struct("<QQ")
RECORD = struct.Struct("<QQII")
LOG_BYTES_MAX = 64 << 20
RECORD_BYTES_MAX = 64 << 10
INDEX_STEP_BYTES = 64 << 10
TEXT_READ_BYTES_MAX = 256 << 10
SHRINK_STEP_BYTES = 1 << 20


class LogStore:
    """One VM's output. Opening cuts off a torn last record; `position` is the number of the last record (0: none).

    Raises:
        HostError: the file cannot be opened or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.position = 0
        self.text_end = 0
        self._text_start = 0
        self._index: list[tuple[int, int]] = []  # (text offset, file offset), sparse, ascending
        self._grown = asyncio.Event()
        self._closed = False
        self._reading = threading.Lock()  # text is read in threads, while the file may be replaced or closed here
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise HostError(f"output log {path}", str(error), "see the host's disk") from error
        self._load()

    def _load(self) -> None:
        """Read the record headers; empty what is no log, cut off what is torn."""
        header = os.pread(self._fd, HEADER.size, 0)
        if len(header) < HEADER.size or HEADER.unpack(header)[0] != MAGIC:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, HEADER.pack(MAGIC, 0), 0)
            header = HEADER.pack(MAGIC, 0)
        self._text_start = self.text_end = HEADER.unpack(header)[1]
        self.position, self._index = 0, []
        at, size_bytes = HEADER.size, os.fstat(self._fd).st_size
        while at + RECORD.size <= size_bytes:
            seq, _, _, length = RECORD.unpack(os.pread(self._fd, RECORD.size, at))
            if length > RECORD_BYTES_MAX or at + RECORD.size + length > size_bytes:
                break
            self._note(seq, length, at)
            at += RECORD.size + length
        os.ftruncate(self._fd, at)
        self._end = at

    def _note(self, seq: int, length: int, at: int) -> None:
        if not self._index or at - self._index[-1][1] >= INDEX_STEP_BYTES:
            self._index.append((self.text_end, at))
        self.position = seq
        self.text_end += length

    @property
    def size_bytes(self) -> int:
        """Bytes of the file."""
        return self._end

    def append(self, stream: int, seq: int, realtime_ns: int, data: bytes) -> None:
        """Add a record; one that is there already (the guest sent it again) is skipped.

        Raises:
            HostError: the disk is full; nothing was added.
        """
        if seq <= self.position:
            return
        record = RECORD.pack(seq, realtime_ns, stream, len(data)) + data
        try:
            written = os.pwrite(self._fd, record, self._end)
            if written != len(record):
                raise OSError(f"wrote {written} of {len(record)} bytes")
        except OSError as error:
            os.ftruncate(self._fd, self._end)
            raise HostError(f"output log {self._path}", str(error), "make room on the host's disk") from error
        self._note(seq, len(data), self._end)
        self._end += len(record)
        self._wake()

    def shrink(self) -> None:
        """Drop the older half of a log over its bound. Not while the VM moves: file offsets change.

        Raises:
            HostError: the disk is full; nothing was dropped.
        """
        if self._end <= LOG_BYTES_MAX:
            return
        text_offset, at = self._index[len(self._index) // 2]
        try:
            write_whole(self._path, self._file_from(text_offset, at))
        except OSError as error:
            raise HostError(f"output log {self._path}", str(error), "make room on the host's disk") from error
        with self._reading:
            os.close(self._fd)
            self._fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
            self._load()

    def _file_from(self, text_offset: int, at: int) -> Iterator[bytes]:
        """The file that begins with the record at `at`, in parts."""
        yield HEADER.pack(MAGIC, text_offset)
        while block := os.pread(self._fd, SHRINK_STEP_BYTES, at):
            yield block
            at += len(block)

    def read_file(self, offset: int, count: int) -> bytes:
        """Bytes of the file itself, for the move."""
        return os.pread(self._fd, min(count, max(0, self._end - offset)), offset)

    def write_file(self, offset: int, data: bytes) -> None:
        """Put bytes of the source's file in place, at the target; repeats are harmless. `reload` makes them count."""
        os.pwrite(self._fd, data, offset)

    def reload(self) -> None:
        """Read the records anew, after `write_file`."""
        self._load()
        self._wake()

    def read_text(self, offset: int) -> tuple[int, bytes]:
        """Text from `offset` on, at most TEXT_READ_BYTES_MAX; returns where it starts (later, if that was dropped) and the text.

        Raises:
            NotFoundError: the log ends before `offset`, or was closed: the VM has left this host.
        """
        with self._reading:
            return self._read_text(offset)

    def _read_text(self, offset: int) -> tuple[int, bytes]:
        if self._fd < 0:
            raise NotFoundError(f"output log {self._path}", "is closed: the VM has left this host", "read it where the VM is")
        if offset > self.text_end:
            raise NotFoundError(f"output at {offset}", f"the log ends at {self.text_end}", "read from 0")
        offset = max(offset, self._text_start)
        if not self._index:
            return offset, b""
        slot = max(0, bisect_right(self._index, (offset, self._end)) - 1)
        text_at, at = self._index[slot]
        parts: list[bytes] = []
        start, total_bytes = offset, 0
        while at < self._end and total_bytes < TEXT_READ_BYTES_MAX:
            length = RECORD.unpack(os.pread(self._fd, RECORD.size, at))[3]
            if text_at + length > offset:
                data = os.pread(self._fd, length, at + RECORD.size)[max(0, offset - text_at) :]
                parts.append(data)
                total_bytes += len(data)
            text_at += length
            at += RECORD.size + length
        return start, b"".join(parts)

    async def wait_grown(self) -> None:
        """Until something was added, or the log was closed."""
        if not self._closed:
            await self._grown.wait()

    def _wake(self) -> None:
        self._grown.set()
        self._grown = asyncio.Event()

    @property
    def is_closed(self) -> bool:
        """Whether nothing will be added here any more."""
        return self._closed

    def end(self) -> None:
        """Nothing will be added here any more; the file can still be read. Idempotent."""
        self._closed = True
        self._grown.set()

    def close(self) -> None:
        """Close the file. Idempotent."""
        self.end()
        with self._reading:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
