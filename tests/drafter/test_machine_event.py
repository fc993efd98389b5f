"""QEMU's events as values."""

from __future__ import annotations

from typing import Any

import pytest

from architect.drafter.machine_event import (
    BlockJobEnded,
    BlockJobReady,
    DiskFailed,
    GuestPanicked,
    MachineReset,
    MachineResumed,
    MachineShutDown,
    MachineStopped,
    parse_event,
)


def event(name: str, **data: Any) -> dict[str, Any]:
    return {"event": name, "data": data, "timestamp": {"seconds": 1700000000, "microseconds": 250000}}


AT_S = 1700000000.25


@pytest.mark.parametrize(
    ("message", "value"),
    [
        (event("STOP"), MachineStopped(AT_S)),
        (event("RESUME"), MachineResumed(AT_S)),
        (event("RESET", guest=True), MachineReset(AT_S)),
        (event("GUEST_PANICKED", action="pause"), GuestPanicked(AT_S)),
        (event("SHUTDOWN", guest=True, reason="guest-shutdown"), MachineShutDown(AT_S, True, "guest-shutdown")),
        (event("BLOCK_JOB_READY", device="mirror"), BlockJobReady(AT_S, "mirror")),
        (event("BLOCK_JOB_COMPLETED", device="mirror", error="I/O"), BlockJobEnded(AT_S, "mirror", False, "I/O")),
        (event("BLOCK_JOB_CANCELLED", device="mirror"), BlockJobEnded(AT_S, "mirror", True, "")),
        (
            event(
                "BLOCK_IO_ERROR", **{"node-name": "disk", "operation": "write", "action": "stop", "nospace": True, "reason": "r"}
            ),
            DiskFailed(AT_S, "disk", "write", True, True, "r"),
        ),
        (event("JOB_STATUS_CHANGE", id="mirror"), None),
        ({"event": "STOP"}, MachineStopped(0.0)),
        ({}, None),
    ],
    ids=str,
)
def test_an_event_of_qemu_becomes_its_value(message: dict[str, Any], value: object) -> None:
    assert parse_event(message) == value
