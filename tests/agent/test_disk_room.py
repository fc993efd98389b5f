"""Room for a VM on a host's file system."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from architect.agent.disk_room import VM_FILES_BYTES, check_room, free_bytes, shortage
from architect.errors import CapacityError


def test_a_vm_that_does_not_fit_is_refused_by_host_file_system_and_sizes(tmp_path: Path) -> None:
    free = free_bytes(tmp_path)
    check_room("gcp-1", tmp_path, max(free // 2 - VM_FILES_BYTES, 0))
    with pytest.raises(CapacityError, match=r"host gcp-1: its file system /\S* has .* free, the VM needs .*; free some space"):
        check_room("gcp-1", tmp_path, 2 * free)


def test_a_file_system_with_room_is_no_shortage(tmp_path: Path) -> None:
    assert shortage("gcp-1", tmp_path) == ""


def test_one_without_is_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = os.statvfs(tmp_path)
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((*found[:4], 0, *found[5:])))
    assert "host gcp-1: its file system /" in (words := shortage("gcp-1", tmp_path)) and "is full: free some space" in words


def test_a_folder_that_cannot_be_asked_about_is_named(tmp_path: Path) -> None:
    assert "No such file" in shortage("gcp-1", tmp_path / "gone")
