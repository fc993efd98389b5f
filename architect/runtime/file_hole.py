"""A hole in a file: its bytes there are zeros that take no room, and every other byte stays where it is (fallocate(2))."""

from __future__ import annotations

import ctypes
import os

_PUNCH_HOLE_KEEP_SIZE = 3

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = _libc.fallocate
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def punch_hole(descriptor: int, offset: int, size_bytes: int) -> None:
    """Make zeros of `size_bytes` from `offset` on, and give back the room of whole blocks among them. Idempotent.

    Raises:
        OSError: the file system makes no holes (EOPNOTSUPP), or failed.
    """
    if _fallocate(descriptor, _PUNCH_HOLE_KEEP_SIZE, offset, size_bytes):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
