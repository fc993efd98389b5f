"""Room on a host's file system for VMs that come: asked before a move begins, and named when a move has failed for want of it.

What a move needs of the disk is what the VM has written (its overlay), and some files of its own. A disk that fills while the move
runs shows itself as something else: a memory process that has ended, a mirror that has. So whoever fails asks here, too.
"""

from __future__ import annotations

import os
from pathlib import Path

from architect.errors import CapacityError
from architect.model.sizes import MIB, format_size

VM_FILES_BYTES = 16 * MIB
"""What a VM's files but its disk may take: record, output, QEMU's logs, the memory process's bitmaps."""
SHORT_BYTES = MIB
"""With less than that free a file system counts as full: an extent and its index do not fit any more."""


def free_bytes(folder: Path) -> int:
    """What may still be written there."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def check_room(host: str, folder: Path, disk_bytes: int) -> None:
    """Refuse a VM whose files, and `disk_bytes` of its disk, do not fit into `folder`.

    Raises:
        CapacityError: names host, file system, what is free and what is needed.
    """
    free, needed = free_bytes(folder), VM_FILES_BYTES + disk_bytes
    if needed > free:
        cause = f"its file system {_mount_point(folder)} has {format_size(free)} free, the VM needs {format_size(needed)}"
        raise CapacityError(f"host {host}", cause, "free some space there, or choose another host")


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
