"""What QEMU says by itself, as typed values. `at_s` is QEMU's own time stamp, seconds since 1970."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


class _Event(msgspec.Struct, frozen=True):
    at_s: float


class MachineStopped(_Event, frozen=True):
    """The guest's CPUs stand still."""


class MachineResumed(_Event, frozen=True):
    """The guest's CPUs run."""


class MachineShutDown(_Event, frozen=True):
    """The guest is over, and QEMU ends. `by_guest` and `reason` (`guest-shutdown`, `guest-reset`: a restart, which is what a kernel
    panic becomes; `guest-panic`, `host-qmp-quit`, `host-signal`) are QEMU's."""

    by_guest: bool
    reason: str


class MachineReset(_Event, frozen=True):
    """The guest was reset."""


class GuestPanicked(_Event, frozen=True):
    """The guest's kernel panicked and said so."""


class BlockJobReady(_Event, frozen=True):
    """A job that follows its source has caught up."""

    job: str


class BlockJobEnded(_Event, frozen=True):
    """A job is over. `error` is empty if it did what it was to do; `cancelled` if it was told to stop early."""

    job: str
    cancelled: bool
    error: str


class DiskFailed(_Event, frozen=True):
    """A read or write of the disk failed at the host; with `stopped` the guest waits for `resume`, then it is tried again."""

    node: str
    operation: str
    stopped: bool
    no_space: bool
    reason: str


class MachineEnded(_Event, frozen=True):
    """QEMU's process is gone. The last event there is. `shutdown` is the reason of the `MachineShutDown` before it, if any: without
    one QEMU did not end by itself. `exit_status` is None if an earlier agent had started it."""

    exit_status: int | None
    last_words: str
    shutdown: str = ""


MachineEvent = (
    MachineStopped | MachineResumed | MachineShutDown | MachineReset | GuestPanicked | BlockJobReady | BlockJobEnded | DiskFailed
    | MachineEnded
)  # fmt: skip


def parse_event(message: Mapping[str, Any]) -> MachineEvent | None:
    """The typed value of a QMP event, None for those that nobody here cares for."""
    data: Mapping[str, Any] = message.get("data", {})
    at_s = event_time(message)
    match message.get("event"):
        case "STOP":
            return MachineStopped(at_s)
        case "RESUME":
            return MachineResumed(at_s)
        case "SHUTDOWN":
            return MachineShutDown(at_s, bool(data.get("guest")), str(data.get("reason", "")))
        case "RESET":
            return MachineReset(at_s)
        case "GUEST_PANICKED":
            return GuestPanicked(at_s)
        case "BLOCK_JOB_READY":
            return BlockJobReady(at_s, str(data.get("device", "")))
        case "BLOCK_JOB_COMPLETED" | "BLOCK_JOB_CANCELLED" as name:
            return BlockJobEnded(at_s, str(data.get("device", "")), name == "BLOCK_JOB_CANCELLED", str(data.get("error", "")))
        case "BLOCK_IO_ERROR":
            stopped = data.get("action") == "stop"
            node = str(data.get("node-name") or data.get("device", ""))
            return DiskFailed(
                at_s, node, str(data.get("operation", "")), stopped, bool(data.get("nospace")), str(data.get("reason", ""))
            )
        case _:
            return None


def event_time(message: Mapping[str, Any]) -> float:
    """Seconds since 1970 of a QMP event."""
    stamp: Mapping[str, Any] = message.get("timestamp", {})
    return float(stamp.get("seconds", 0)) + float(stamp.get("microseconds", 0)) * 1e-6
