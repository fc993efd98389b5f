"""Holes in files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from architect.runtime.file_hole import punch_hole


def test_a_hole_takes_no_room_and_moves_no_other_byte(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"a" * 100 + b"b" * (1 << 20) + b"c" * 100)
    with path.open("r+b") as file:
        punch_hole(file.fileno(), 100, 1 << 20)
        punch_hole(file.fileno(), 100, 1 << 20)
        assert path.read_bytes() == b"a" * 100 + bytes(1 << 20) + b"c" * 100
        assert path.stat().st_blocks * 512 < 1 << 16


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"a" * 5000)
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="Bad file descriptor"):
            punch_hole(descriptor, 0, 4096)
    finally:
        os.close(descriptor)
