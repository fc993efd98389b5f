"""The VM's output on this host: an append-only file of records, which moves with the VM.

File: 24 bytes of header (magic, text offset of the first record, file offset of the first record), then records: ``u64 seq | u64
realtime_ns | u32 stream | u32 length | data``, little-endian. `seq` is the guest channel's record number, so the file itself says
what to acknowledge: a record is in the file whole or, after a crash in the middle of a write, cut off at the next open and sent
again by the guest. Users see the text of all records joined.

A log over its bound drops its older half: the header names a later first record, and what was before becomes a hole. So neither
offset of what stays ever changes, the text's for readers nor the file's for a move, which may be in the middle of it. The file's
length goes on growing (ext4 ends a file at 16 TiB); the room that it takes does not.
"""

from __future__ import annotations

import asyncio
import logging
import os
import struct
import threading
from bisect import bisect_left, bisect_right
from pathlib import Path

from architect.errors import HostError, NotFoundError
from architect.model.sizes import OUTPUT_BYTES_MAX
from architect.runtime.file_hole import punch_hole

MAGIC = 0x32474F4C48435241  # "ARCHLOG2"
HEADER = struct.Struct("<QQQ")
RECORD = struct.Struct("<QQII")
RECORD_BYTES_MAX = 64 << 10
INDEX_STEP_BYTES = 64 << 10
TEXT_READ_BYTES_MAX = 256 << 10

_log = logging.getLogger(__name__)


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
        self._first = self._end = HEADER.size
        self._index: list[tuple[int, int]] = []  # (text offset, file offset), sparse, ascending
        self._grown = asyncio.Event()
        self._closed = False
        self._reading = threading.Lock()  # it is read in threads, while old records may be dropped or the file closed
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
            header = HEADER.pack(MAGIC, 0, HEADER.size)
            os.pwrite(self._fd, header, 0)
        _, self._text_start, self._first = HEADER.unpack(header)
        self.position, self.text_end, self._index = 0, self._text_start, []
        at, size_bytes = self._first, os.fstat(self._fd).st_size
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
        """Where the file ends; it takes less room, if old records were dropped."""
        return self._end

    @property
    def is_over_bound(self) -> bool:
        """Whether it takes more room than it may: `drop_older_half`."""
        return self._end - self._first > OUTPUT_BYTES_MAX

    async def take(self, stream: int, seq: int, realtime_ns: int, data: bytes) -> None:
        """As `append`, within the bound: the older half is dropped first, and the guest's next record waits until that is done.

        Raises:
            HostError: the disk is full; nothing was added.
        """
        if self.is_over_bound:
            try:
                await asyncio.to_thread(self.drop_older_half)
            except HostError as error:
                _log.error("%s", error)
        self.append(stream, seq, realtime_ns, data)

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

    def drop_older_half(self) -> None:
        """Give back the room of the older half of a log over its bound; the newer one stays readable. Idempotent. It waits for the
        disk: the new header is there before the old records go, or a crash of the machine would leave a log that begins in a hole.

        Raises:
            HostError: this file system makes no holes; the older half is dropped, but its room is not free.
        """
        with self._reading:
            if not self.is_over_bound or self._fd < 0:
                return
            slot = bisect_left(self._index, self._end - OUTPUT_BYTES_MAX // 2, key=lambda entry: entry[1])
            slot = min(slot, len(self._index) - 1)
            text_offset, at = self._index[slot]
            try:
                os.pwrite(self._fd, HEADER.pack(MAGIC, text_offset, at), 0)
                os.fdatasync(self._fd)
                self._text_start, self._first = text_offset, at
                del self._index[:slot]
                punch_hole(self._fd, HEADER.size, at - HEADER.size)
            except OSError as error:
                raise HostError(f"output log {self._path}", str(error), "see the host's disk and its file system") from error

    def read_file(self, offset: int, count: int) -> tuple[tuple[int, bytes], ...]:
        """The file's pieces from `offset` on, for the move: (where, bytes), at most `count` bytes of records. The last piece is the
        records; they begin later than `offset` if some were dropped, and then the header, which says so, comes before them."""
        with self._reading:
            start = max(offset, self._first)
            head = ((0, HEADER.pack(MAGIC, self._text_start, self._first)),) if start > offset else ()
            return *head, (start, os.pread(self._fd, min(count, max(0, self._end - start)), start))

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
