"""A folder's whole file system brought to the disk, syncfs(2): one wait, where a tree of thousands of files would cost one each."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_syncfs = _libc.syncfs
_syncfs.argtypes = [ctypes.c_int]


def flush_file_system(folder: Path) -> None:
    """Wait until what was written to the file system of `folder` is on the disk, what others wrote there, too. Blocks.

    Raises:
        OSError: there is no such folder, or something could not be written (Linux 5.8; older ones do not tell).
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _syncfs(descriptor):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))
    finally:
        os.close(descriptor)
