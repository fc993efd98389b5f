"""The states of a handover: one table for control, source and target (DESIGN §4).

::

    PLANNED → PREPARING → PRECOPY → SWITCHOVER → COMMITTED → POSTCOPY → DONE
        │         │          │           │           └──────(all present)──→ DONE
        └─────────┴──────────┴───────────┴→ FAILED (before the commit: the source runs on)
                                                     POSTCOPY → LOST (after it: a source of extents vanished)
                                         COMMITTED, POSTCOPY → LOST (the target's machine died before the move ended)
                                         COMMITTED, POSTCOPY → FAILED (it died before it ever ran: given back, the source runs on)

The commit is the target's ownership record for term + 1. Before it every failure ends in FAILED and the source runs on; after
it the move cannot fail any more, only be DONE or lose the VM, unless the target gives the VM back by a record for term + 2.
"""

from __future__ import annotations

from enum import StrEnum


class HandoverState(StrEnum):
    """Where a handover stands."""

    PLANNED = "planned"
    PREPARING = "preparing"
    PRECOPY = "precopy"
    SWITCHOVER = "switchover"
    COMMITTED = "committed"
    POSTCOPY = "postcopy"
    DONE = "done"
    FAILED = "failed"
    LOST = "lost"

    @property
    def is_terminal(self) -> bool:
        """Whether the handover has ended."""
        return self in (HandoverState.DONE, HandoverState.FAILED, HandoverState.LOST)


BEFORE_COMMIT = (HandoverState.PLANNED, HandoverState.PREPARING, HandoverState.PRECOPY, HandoverState.SWITCHOVER)
"""The states in which a handover can still be given up: the source has the VM."""


class HandoverEvent(StrEnum):
    """What moves a handover on."""

    START = "start"
    TARGET_READY = "target-ready"
    CUT_DUE = "cut-due"
    COMMIT = "commit"
    EXTENTS_MISSING = "extents-missing"
    ALL_PRESENT = "all-present"
    FAIL = "fail"
    SOURCE_GONE = "source-gone"
    MACHINE_GONE = "machine-gone"
    GIVEN_BACK = "given-back"


TRANSITIONS: dict[HandoverState, dict[HandoverEvent, HandoverState]] = {
    HandoverState.PLANNED: {HandoverEvent.START: HandoverState.PREPARING, HandoverEvent.FAIL: HandoverState.FAILED},
    HandoverState.PREPARING: {HandoverEvent.TARGET_READY: HandoverState.PRECOPY, HandoverEvent.FAIL: HandoverState.FAILED},
    HandoverState.PRECOPY: {HandoverEvent.CUT_DUE: HandoverState.SWITCHOVER, HandoverEvent.FAIL: HandoverState.FAILED},
    HandoverState.SWITCHOVER: {HandoverEvent.COMMIT: HandoverState.COMMITTED, HandoverEvent.FAIL: HandoverState.FAILED},
    HandoverState.COMMITTED: {
        HandoverEvent.EXTENTS_MISSING: HandoverState.POSTCOPY,
        HandoverEvent.ALL_PRESENT: HandoverState.DONE,
        HandoverEvent.MACHINE_GONE: HandoverState.LOST,
        HandoverEvent.GIVEN_BACK: HandoverState.FAILED,
    },
    HandoverState.POSTCOPY: {
        HandoverEvent.ALL_PRESENT: HandoverState.DONE,
        HandoverEvent.SOURCE_GONE: HandoverState.LOST,
        HandoverEvent.MACHINE_GONE: HandoverState.LOST,
        HandoverEvent.GIVEN_BACK: HandoverState.FAILED,
    },
    HandoverState.DONE: {},
    HandoverState.FAILED: {},
    HandoverState.LOST: {},
}


class MigrationMode(StrEnum):
    """How a move treats what is still dirty when it is due."""

    AUTO = "auto"
    PRECOPY = "precopy"
    POSTCOPY = "postcopy"
