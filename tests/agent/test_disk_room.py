"""Room for a VM on a host's file system."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from architect.agent import disk_room
from architect.agent.disk_room import VM_FILES_BYTES, DiskRoom, free_bytes, shortage
from architect.errors import CapacityError
from architect.model.ids import VmId
from architect.model.sizes import MIB


def test_a_vm_that_does_not_fit_is_refused_by_host_file_system_and_sizes(tmp_path: Path) -> None:
    free, room = free_bytes(tmp_path), DiskRoom("gcp-1", tmp_path)
    room.check(max(free // 2 - VM_FILES_BYTES, 0))
    with pytest.raises(CapacityError, match=r"host gcp-1: its file system /\S* has [^,]* free; the VM needs .*; free some space"):
        room.check(2 * free)


def test_vms_that_come_at_once_have_to_fit_together_and_what_has_come_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, other = (VmId(f"vm-00000000000{number}") for number in range(3))
    room, free = DiskRoom("gcp-1", tmp_path), 100 * MIB
    monkeypatch.setattr(disk_room, "free_bytes", lambda _: free)
    overlays = {vm: tmp_path / vm / "disk.qcow2" for vm in (first, second, other)}
    for vm in (first, second):
        room.check(20 * MIB)
        overlays[vm].parent.mkdir()
        room.expect(vm, overlays[vm], 20 * MIB)
    with pytest.raises(CapacityError, match=r"has 100\.0 MiB free, of which VMs that come take 72\.0 MiB; the VM needs 36\.0 MiB"):
        room.check(20 * MIB)
    overlays[first].write_bytes(bytes(10 * MIB))
    free -= 10 * MIB
    with pytest.raises(CapacityError, match=r"take 62\.0 MiB"):
        room.check(20 * MIB)
    room.arrived(first)
    room.check(20 * MIB)
    room.expect(other, overlays[other], 80 * MIB)  # its folder is gone: it will not come
    overlays[second].parent.rmdir()
    room.check(70 * MIB)


def test_a_file_system_with_room_is_no_shortage(tmp_path: Path) -> None:
    assert shortage("gcp-1", tmp_path) == ""


def test_one_without_is_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = os.statvfs(tmp_path)
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((*found[:4], 0, *found[5:])))
    assert "host gcp-1: its file system /" in (words := shortage("gcp-1", tmp_path)) and "is full: free some space" in words


def test_a_folder_that_cannot_be_asked_about_is_named(tmp_path: Path) -> None:
    assert "No such file" in shortage("gcp-1", tmp_path / "gone")
