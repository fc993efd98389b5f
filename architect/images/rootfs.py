"""Makes an unpacked image ready to become a disk: the mount points of the guest, the working directory, times that repeat.

What the image has stays as it is. Paths are followed as the guest will follow them, inside the tree: an image whose `/run` is a
link to `/etc` of all things must not make us write into this host's `/etc`.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec

from architect.errors import InvalidImageError

BLOCK_BYTES = 4096
# Times of what the image does not date: the directories that we or umoci add. Any constant will do; this one is 2023-11-14.
IMAGE_EPOCH_S = 1_700_000_000
_MOUNT_POINTS = (("/proc", 0o555), ("/sys", 0o555), ("/dev", 0o755), ("/run", 0o755), ("/tmp", 0o1777), ("/etc", 0o755))
_LINKS_MAX = 40


class TreeSize(msgspec.Struct, frozen=True):
    """What a tree needs of a file system: whole blocks of content, and inodes."""

    content_bytes: int
    inodes: int


def add_mount_points(rootfs: Path, cwd: str, thing: str) -> None:
    """Make the directories that the guest mounts on, and the process's working directory, where they are missing.

    Raises:
        InvalidImageError: one of them exists as something else than a directory.
    """
    for path, mode in (*_MOUNT_POINTS, (cwd, 0o755)):
        _ensure_directory(rootfs, path, mode, thing)


def _ensure_directory(rootfs: Path, path: str, mode: int, thing: str) -> None:
    """`mkdir -p` inside `rootfs`; links are followed inside it, a link to nothing gets the directory it points to."""
    at = rootfs
    todo = [part for part in reversed(path.split("/")) if part not in ("", ".")]
    links = 0
    while todo:
        part = todo.pop()
        if part == "..":
            at = at.parent if at != rootfs else rootfs
            continue
        found = _lstat(at / part)
        if found is None:
            (at / part).mkdir()
            (at / part).chmod(0o755 if todo else mode)
        elif stat.S_ISLNK(found.st_mode):
            links += 1
            target = os.readlink(at / part)
            at = rootfs if target.startswith("/") else at
            todo.extend(word for word in reversed(target.split("/")) if word not in ("", "."))
            if links <= _LINKS_MAX:
                continue
            raise InvalidImageError(thing, f"{path} is a link to itself", "mend the image")
        elif not stat.S_ISDIR(found.st_mode):
            raise InvalidImageError(thing, f"{path} is not a directory", "a VM needs it as one; mend the image")
        at = at / part


def _lstat(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except FileNotFoundError:
        return None


def settle_times(rootfs: Path, unpacked_at_s: float) -> TreeSize:
    """Give every entry times that a second unpacking would give it too, and return what the tree needs.

    An entry that is dated after `unpacked_at_s` was made by the unpacking itself. Access times become modification times.
    """
    content_bytes = inodes = 0
    linked: set[tuple[int, int]] = set()
    for entry in _entries(rootfs):
        found = os.lstat(entry)
        modified_ns = found.st_mtime_ns
        if found.st_mtime >= unpacked_at_s:
            modified_ns = IMAGE_EPOCH_S * 10**9
        os.utime(entry, ns=(modified_ns, modified_ns), follow_symlinks=False)
        if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
            if (found.st_dev, found.st_ino) in linked:
                continue
            linked.add((found.st_dev, found.st_ino))
        inodes += 1
        if stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode):
            content_bytes += -(-found.st_size // BLOCK_BYTES) * BLOCK_BYTES
        elif stat.S_ISLNK(found.st_mode):
            content_bytes += BLOCK_BYTES
    return TreeSize(content_bytes, inodes)


def _entries(rootfs: Path) -> list[str]:
    """Every path of the tree, contents before their directory, so that setting a time is not undone by a later one."""
    entries: list[str] = []
    for directory, directories, files in os.walk(rootfs, topdown=False, followlinks=False):
        links = [name for name in directories if os.path.islink(os.path.join(directory, name))]
        entries += [os.path.join(directory, name) for name in (*files, *links)]
        entries.append(directory)
    return entries
