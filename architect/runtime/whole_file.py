"""A file that is written whole: whoever reads it finds what was there before or all of the new content, whenever the writer dies.

The content is written beside the file and renamed over it::

    X.0.new    what is on its way: locked by its writer (flock(2)), gone when the writing has failed
    X.1.new    that of a second writer at the same time; the last one to rename wins

The lock goes with its holder, however that ends. So a file that is there and not locked is what a killed writer left, and the next
writer of X writes over it: such files do not add up, and none has to be looked for. An unnamed file (O_TMPFILE) would leave nothing
at all, but link(2) replaces no name, and not every file system has unnamed files.

The name itself is never flushed: after a crash of the machine the file may be the one before. Who must know that the new one will
be there afterwards flushes the folder, too, as `migration.ownership_directory` does.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterable
from pathlib import Path

WRITERS_MAX = 16


def write_whole(path: Path, content: bytes | Iterable[bytes], *, mode: int = 0o600, is_flushed: bool = False) -> None:
    """Put the content at `path`, in the place of what was there.

    :param content: all of it, or its parts in order.
    :param mode: the file's permissions, whatever the umask; the content never stands under wider ones.
    :param is_flushed: the content is on disk before it gets its name: a crash of the machine leaves one of the two, never an empty
        file. It costs the wait for the disk.

    Raises:
        OSError: it cannot be written; what was there still is, and nothing is beside it. The same holds for whatever else ends the
            writing (an error of the parts' iterator, KeyboardInterrupt).
    """
    descriptor, temporary = _open_alone(path)
    try:
        os.ftruncate(descriptor, 0)
        os.fchmod(descriptor, mode)
        for part in (content,) if isinstance(content, bytes) else content:
            _write(descriptor, part)
        if is_flushed:
            os.fsync(descriptor)
        temporary.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    finally:
        os.close(descriptor)  # and with it the lock: after the file has left its name


def _open_alone(path: Path) -> tuple[int, Path]:
    """A file beside `path` that nobody else writes: a new one, or what a killed writer left."""
    for number in range(WRITERS_MAX):
        temporary = path.with_name(f"{path.name}.{number}.new")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if _is_alone(descriptor, temporary):
                return descriptor, temporary
        except OSError:  # a file system without locks
            os.close(descriptor)
            raise
        os.close(descriptor)
    raise BlockingIOError(errno.EAGAIN, f"{WRITERS_MAX} others are writing it", str(path))


def _is_alone(descriptor: int, temporary: Path) -> bool:
    """Whether we have the lock of the file, and it still has its name: who had the lock before may have renamed it just now."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), os.stat(temporary, follow_symlinks=False))
    except (BlockingIOError, FileNotFoundError):
        return False


def _write(descriptor: int, part: bytes) -> None:
    rest = memoryview(part)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
