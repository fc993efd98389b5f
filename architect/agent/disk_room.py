"""Room on a host's file system for VMs that come: asked before a move begins, and named when a move has failed for want of it.

What a move needs of the disk is what the VM has written (its overlay), and some files of its own. A disk that fills while the move
runs shows itself as something else: a memory process that has ended, a mirror that has. So whoever fails asks here, too.
"""

from __future__ import annotations

import os
from pathlib import Path

from architect.drafter.overlay import allocated_bytes
from architect.errors import CapacityError
from architect.model.ids import VmId
from architect.model.sizes import MIB, format_size

VM_FILES_BYTES = 16 * MIB
"""What a VM's files but its disk may take: record, output, QEMU's logs, the memory process's bitmaps."""
SHORT_BYTES = MIB
"""With less than that free a file system counts as full: an extent and its index do not fit any more."""


def free_bytes(folder: Path) -> int:
    """What may still be written there."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


class DiskRoom:
    """The room of `host` in `folder`: what is free, less what the VMs that come already have still to write."""

    def __init__(self, host: str, folder: Path) -> None:
        self._host = host
        self._folder = folder
        self._coming: dict[VmId, tuple[Path, int]] = {}

    def check(self, disk_bytes: int) -> None:
        """Refuse a VM whose files, and `disk_bytes` of its disk, do not fit.

        Raises:
            CapacityError: names host, file system, what is free and what is needed.
        """
        free, promised, needed = free_bytes(self._folder), self._promised_bytes(), VM_FILES_BYTES + disk_bytes
        if needed <= free - promised:
            return
        cause = f"its file system {_mount_point(self._folder)} has {format_size(free)} free"
        if promised:
            cause += f", of which VMs that come take {format_size(promised)}"
        next_step = "free some space there, or choose another host"
        raise CapacityError(f"host {self._host}", f"{cause}; the VM needs {format_size(needed)}", next_step)

    def expect(self, vm: VmId, overlay: Path, disk_bytes: int) -> None:
        """The VM comes, and will have `disk_bytes` in `overlay`. It counts until it has arrived, or its folder is gone."""
        self._coming[vm] = overlay, disk_bytes

    def arrived(self, vm: VmId) -> None:
        """All that comes of the VM is here. Idempotent."""
        self._coming.pop(vm, None)

    def _promised_bytes(self) -> int:
        self._coming = {vm: coming for vm, coming in self._coming.items() if coming[0].parent.is_dir()}
        return sum(max(VM_FILES_BYTES + disk_bytes - written_bytes(overlay), 0) for overlay, disk_bytes in self._coming.values())


def written_bytes(overlay: Path) -> int:
    """What a VM has written to its disk, as far as it takes room; 0 if there is none."""
    try:
        return allocated_bytes(overlay)
    except OSError:
        return 0


def shortage(host: str, folder: Path) -> str:
    """What `host` lacks for VMs in `folder` just now, in words; "" if nothing."""
    try:
        free = free_bytes(folder)
    except OSError as error:
        return f"host {host}: {folder}: {error.strerror}"
    if free >= SHORT_BYTES:
        return ""
    return f"host {host}: its file system {_mount_point(folder)} is full: free some space there, or choose another host"


def _mount_point(folder: Path) -> Path:
    while not os.path.ismount(folder):
        folder = folder.parent
    return folder
