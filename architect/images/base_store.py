"""The store of base disks: read-only raw files named by the SHA-256 of their content.

::

    ROOT/bases/DIGEST.raw       mode 0444, complete and verified, never changed
    ROOT/records/NAME.json      what the image builder remembers (which image became which base)
    ROOT/locks/NAME.lock        one builder per name, over processes
    ROOT/temporary/XXXX/        work in progress; its owner holds a lock on XXXX/lock, and what nobody holds is removed

Several processes of a machine may share a store. A file appears under its name only when it is whole and on disk: a crash leaves
at most a temporary directory, and the next `open` removes it. A base that a peer lacks is sent as its data without holes:
`read_chunks` on one side, `import_chunks` on the other, and the hash decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Collection, Iterator
from pathlib import Path

from architect.errors import ConflictError, HostError, NotFoundError, PeerError, UsageError
from architect.images.tool import map_os_error
from architect.model.image import BaseDiskRef
from architect.runtime.cancellation import run_in_thread_to_end

CHUNK_BYTES_MAX = 4 << 20
BASE_BYTES_MAX = 1 << 40
_HASH_BYTES = 1 << 20
_ZEROS = bytes(_HASH_BYTES)
_LOCK_POLL_S = 0.02
_LOCK_POLL_MAX_S = 0.25


class WrongBaseError(PeerError):
    """What a peer sent is not the base disk that its digest names; nothing of it was kept."""

    code = "wrong-base"

    def __init__(self, digest: str, cause: str) -> None:
        super().__init__(f"base disk {digest[:12]}", cause, "send it again; if it repeats, the sender's copy is damaged")


class BaseStore:
    """A store under `root`, made where it does not exist. Opening it removes what crashed builders left."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._bases = root / "bases"
        self._temporary = root / "temporary"
        try:
            for directory in (self._bases, self._temporary, root / "locks", root / "records"):
                directory.mkdir(parents=True, exist_ok=True, mode=0o755)
            self._sweep()
        except OSError as error:
            raise map_os_error(error, f"image store {root}", root) from error

    def get(self, digest: str) -> Path | None:
        """The base's file, or None where the store lacks it."""
        path = self._path(digest)
        return path if path.is_file() else None

    def used_bytes(self) -> int:
        """The room that the bases take on disk; holes are free."""
        return sum(path.stat().st_blocks * 512 for path in self._bases.iterdir())

    def prune(self, keep: Collection[str]) -> int:
        """Remove all bases but those of `keep`; returns the bytes freed. Who has a base open keeps it until it closes it."""
        freed = 0
        for path in list(self._bases.glob("*.raw")):
            if path.stem not in keep:
                freed += path.stat().st_blocks * 512
                path.unlink(missing_ok=True)
        return freed

    def record_path(self, name: str) -> Path:
        """Where the builder's record `name` is kept."""
        return self.root / "records" / f"{name}.json"

    @contextlib.asynccontextmanager
    async def workspace(self) -> AsyncIterator[Path]:
        """A new empty directory on the store's file system, removed at the end, or by the next `open` after a crash."""
        directory = self._temporary / secrets.token_hex(8)
        lock = -1
        try:
            # Made and locked in one step for sweepers, who hold the lock of the parent as we do.
            with _locked(self._temporary):
                (directory / "work").mkdir(parents=True)
                lock = _take_lock(directory / "lock")
            yield directory / "work"
        except (TimeoutError, ConnectionError):
            raise  # of whoever feeds us, though Python counts them as OSError
        except OSError as error:
            raise map_os_error(error, f"image store {self.root}", self.root) from error
        finally:
            # In a thread, for an image's tree is large; shielded, for a cancelled build has to clean up too.
            await asyncio.shield(asyncio.to_thread(_remove, directory, lock))

    @contextlib.asynccontextmanager
    async def lock(self, name: str, deadline_s: float) -> AsyncIterator[None]:
        """Hold the store-wide lock `name`.

        Raises:
            ConflictError: somebody else still holds it after `deadline_s`.
        """
        descriptor = _lock_file(self.root / "locks" / f"{name}.lock")
        try:
            await _wait_lock(descriptor, name, deadline_s)
            yield
        finally:
            os.close(descriptor)

    def adopt(self, file: Path) -> BaseDiskRef:
        """Take a finished raw file of this store's `workspace` into the store under its hash. Blocks; call it in a thread.

        Raises:
            CapacityError, HostError: it could not be put on disk.
        """
        try:
            with file.open("rb") as opened:
                size_bytes = os.fstat(opened.fileno()).st_size
                digest = _hash_file(opened.fileno(), size_bytes)
            self._publish(file, digest)
        except OSError as error:
            raise map_os_error(error, f"base disk of {file.name}", self.root) from error
        return BaseDiskRef(digest, size_bytes)

    async def import_chunks(self, digest: str, size_bytes: int, chunks: AsyncIterator[tuple[int, bytes]]) -> Path:
        """Store a base that a peer sends as (offset, data) in ascending order; what is not sent is zeros.

        Idempotent: a base that is here already is returned without reading `chunks`. After an error or a cancellation nothing is
        left of it.

        Raises:
            WrongBaseError: the data overlaps, is too long, or does not have the hash.
            CapacityError, HostError: it could not be put on disk.
        """
        if found := self.get(digest):
            return found
        if not 0 < size_bytes <= BASE_BYTES_MAX:
            raise WrongBaseError(digest, f"a size of {size_bytes} bytes is out of bounds")
        async with self.workspace() as workspace:
            file = workspace / "base.raw"
            received = await self._receive(file, digest, size_bytes, chunks)
            if received != digest:
                raise WrongBaseError(digest, f"the data received has the hash {received[:12]}")
            await run_in_thread_to_end(self._publish, file, digest)
        return self._path(digest)

    async def read_chunks(self, digest: str, chunk_bytes: int) -> AsyncIterator[tuple[int, bytes]]:
        """The base's data as (offset, data), ascending, without holes and without chunks of zeros.

        Raises:
            NotFoundError: the store lacks the base.
        """
        if not 4096 <= chunk_bytes <= CHUNK_BYTES_MAX:
            raise UsageError(f"chunk size {chunk_bytes}", "out of bounds", f"use 4096 to {CHUNK_BYTES_MAX} bytes")
        path = self.get(digest)
        if path is None:
            raise NotFoundError(f"base disk {digest[:12]}", "this host does not have it", "prepare the image here first")
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            offset = 0
            while (step := await asyncio.to_thread(_next_data, file.fileno(), offset, size_bytes, chunk_bytes)) is not None:
                yield step
                offset = step[0] + len(step[1])

    async def _receive(self, file: Path, digest: str, size_bytes: int, chunks: AsyncIterator[tuple[int, bytes]]) -> str:
        """Write and hash what comes; returns the hash."""
        hasher = hashlib.sha256()
        position = 0
        with file.open("wb") as opened:
            opened.truncate(size_bytes)
            async for offset, data in chunks:
                if offset < position or offset + len(data) > size_bytes or len(data) > CHUNK_BYTES_MAX:
                    raise WrongBaseError(digest, f"a chunk of {len(data)} bytes at {offset} does not fit")
                await run_in_thread_to_end(_store, opened.fileno(), hasher, offset - position, offset, data)
                position = offset + len(data)
            await asyncio.to_thread(_hash_zeros, hasher, size_bytes - position)
        return hasher.hexdigest()

    def _publish(self, file: Path, digest: str) -> None:
        """Flush, and give it its name; a file that has the name already has the same content."""
        with file.open("rb") as opened:
            os.fchmod(opened.fileno(), 0o444)
            os.fsync(opened.fileno())
        file.rename(self._path(digest))
        sync_directory(self._bases)

    def _path(self, digest: str) -> Path:
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise UsageError(f"base disk {digest!r}", "not a digest", "use 64 hex digits")
        return self._bases / f"{digest}.raw"

    def _sweep(self) -> None:
        """Remove the work of crashed processes: what has no lock, or a lock that nobody holds."""
        dead: list[tuple[Path, int]] = []
        with _locked(self._temporary):
            for directory in self._temporary.iterdir():
                if directory.is_dir():
                    with contextlib.suppress(BlockingIOError):
                        dead.append((directory, _take_lock(directory / "lock")))
        for directory, lock in dead:
            _remove(directory, lock)


def sync_directory(directory: Path) -> None:
    """Put the names of a directory on disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock_file(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _take_lock(path: Path) -> int:
    """A descriptor that holds the lock.

    Raises:
        BlockingIOError: somebody else holds it.
    """
    descriptor = _lock_file(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    return descriptor


def _remove(directory: Path, lock: int) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    if lock >= 0:
        os.close(lock)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold a lock that is held only for the moment of a mkdir or a sweep."""
    descriptor = _lock_file(directory / "lock")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


async def _wait_lock(descriptor: int, name: str, deadline_s: float) -> None:
    """Poll, because a thread that blocks in flock(2) could not be cancelled."""
    try:
        async with asyncio.timeout(deadline_s):
            pause_s = _LOCK_POLL_S
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                except BlockingIOError:
                    await asyncio.sleep(pause_s)
                    pause_s = min(pause_s * 1.5, _LOCK_POLL_MAX_S)
    except TimeoutError as error:
        raise ConflictError(
            f"image {name}", f"another process has been preparing it for {deadline_s:.0f} s", "wait for it, then try again"
        ) from error


def _store(descriptor: int, hasher: hashlib._Hash, gap_bytes: int, offset: int, data: bytes) -> None:
    _hash_zeros(hasher, gap_bytes)
    hasher.update(data)
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        offset += written
        view = view[written:]


def _hash_zeros(hasher: hashlib._Hash, count: int) -> None:
    while count > 0:
        hasher.update(_ZEROS[:count])
        count -= len(_ZEROS)


def _hash_file(descriptor: int, size_bytes: int) -> str:
    """The SHA-256 of a file; its holes are not read."""
    hasher = hashlib.sha256()
    position = 0
    while (step := _next_data(descriptor, position, size_bytes, _HASH_BYTES)) is not None:
        offset, data = step
        _hash_zeros(hasher, offset - position)
        hasher.update(data)
        position = offset + len(data)
    _hash_zeros(hasher, size_bytes - position)
    return hasher.hexdigest()


def _next_data(descriptor: int, offset: int, size_bytes: int, chunk_bytes: int) -> tuple[int, bytes] | None:
    """The first chunk at or after `offset` that is not zeros."""
    while offset < size_bytes:
        try:
            offset = os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return None
            raise
        data = os.pread(descriptor, min(chunk_bytes, size_bytes - offset), offset)
        if not data:
            raise HostError("base disk", "its file became shorter", "remove it from the store, then try again")
        if data.count(0) != len(data):
            return offset, data
        offset += len(data)
    return None
