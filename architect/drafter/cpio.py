"""cpio "newc" archives, as the kernel unpacks them into its first root: written deterministically, byte for byte.

Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst. No times, root owns all, inodes number the entries.
"""

from __future__ import annotations

import stat

import msgspec

_ALIGNMENT = 4
_TRAILER = "TRAILER!!!"


class CpioEntry(msgspec.Struct, frozen=True):
    """One file (`mode` includes its type). A device has its numbers in `device`."""

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(path: str) -> CpioEntry:
    """A directory that all may read."""
    return CpioEntry(path, stat.S_IFDIR | 0o755)


def regular_file(path: str, data: bytes, permissions: int = 0o644) -> CpioEntry:
    """A file with its content."""
    return CpioEntry(path, stat.S_IFREG | permissions, data)


def character_device(path: str, major: int, minor: int) -> CpioEntry:
    """A character device that root may use."""
    return CpioEntry(path, stat.S_IFCHR | 0o600, device=(major, minor))


def write_cpio(entries: list[CpioEntry]) -> bytes:
    """The archive of `entries`, sorted by path (so a directory is before what is in it)."""
    archive = bytearray()
    ordered = sorted(entries, key=lambda entry: entry.path)
    for inode, entry in enumerate([*ordered, CpioEntry(_TRAILER, 0)], start=1):
        _append(archive, inode, entry)
    return bytes(archive)


def _append(archive: bytearray, inode: int, entry: CpioEntry) -> None:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    archive += b"070701" + b"".join(b"%08X" % field for field in fields) + name
    _pad(archive)
    archive += entry.data
    _pad(archive)


def _pad(archive: bytearray) -> None:
    archive += bytes(-len(archive) % _ALIGNMENT)
