"""File systems of their own, for tests of disks that fill or fail: mounted while a block runs, and let go of whatever is open."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

LOOP_DEVICES = Path("/dev/loop-control")
MODE = 0o711
"""As of the folder of a host's VMs: whoever runs QEMU passes through it."""

_EXT4_IOC_SHUTDOWN = 0x8004587D  # linux/fs.h
_SHUTDOWN_NOLOGFLUSH = 2


def skip_without_loop_devices() -> None:
    """Skip the test where no file can be mounted."""
    if not LOOP_DEVICES.exists():
        pytest.skip(f"needs {LOOP_DEVICES}: a file system of its own")


@contextlib.contextmanager
def tmpfs(folder: Path, size_bytes: int) -> Iterator[Path]:
    """A file system in memory, mounted there."""
    with _mounted(folder, "-t", "tmpfs", "-o", f"size={size_bytes},mode={MODE:o}", "tmpfs"):
        yield folder


@contextlib.contextmanager
def ext4(folder: Path, image: Path, size_bytes: int) -> Iterator[Path]:
    """A file system in a new file `image`, mounted there; it needs loop devices."""
    with image.open("wb") as file:
        file.truncate(size_bytes)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
    with _mounted(folder, "-o", "loop", str(image)):
        folder.chmod(MODE)
        yield folder


def fail_writes(folder: Path) -> None:
    """Every write to the ext4 that is mounted there fails from now on; what its log has not brought to its disk is lost."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, _EXT4_IOC_SHUTDOWN, struct.pack("I", _SHUTDOWN_NOLOGFLUSH))
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _mounted(folder: Path, *words: str) -> Iterator[None]:
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", *words, str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
