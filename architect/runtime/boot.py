"""Boots of the machine: what was noted of one (processes, deadlines of its clock, a guest that stands) is not true of the next."""

from __future__ import annotations

from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Which boot this is: another text each time (random(4))."""
    return _BOOT_ID.read_text().strip()
