"""Flushing a folder's file system."""

from __future__ import annotations

from pathlib import Path

import pytest

from architect.runtime.file_system_flush import flush_file_system


def test_a_folder_is_flushed_and_what_is_none_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    flush_file_system(tmp_path)
    with pytest.raises(NotADirectoryError):
        flush_file_system(tmp_path / "file")
