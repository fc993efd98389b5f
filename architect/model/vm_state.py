"""The states of a VM as users see them (`ps`, `inspect`)."""

from __future__ import annotations

from enum import StrEnum


class VmState(StrEnum):
    """A VM's state; terminal ones never change again."""

    CREATING = "creating"
    RUNNING = "running"
    PAUSED = "paused"
    MIGRATING = "migrating"
    RESTORING = "restoring"
    PARKED = "parked"
    EXITED = "exited"
    STOPPED = "stopped"
    LOST = "lost"

    @property
    def is_terminal(self) -> bool:
        """Whether the VM is over."""
        return self in (VmState.EXITED, VmState.STOPPED, VmState.LOST)
