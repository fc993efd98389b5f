"""What happened to ownership in a simulation: an event for every record, pause, resume, end, steer, crash and restart, in order.

The trace is for people; these are for programs: a model of the ownership protocol replays them and says whether it allows them.
`World.events` grows while a simulation runs, and `Result.events` holds them all.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from architect.model.ownership import OwnershipRecord


class EventKind(StrEnum):
    """What can happen. CRASH is a process killed by a fault, DESTROY a machine ended by its agent."""

    RECORD_CREATED = "record-created"
    RECORD_READ = "record-read"
    RECORD_REFUSED = "record-refused"
    PAUSE = "pause"
    RESUME = "resume"
    DESTROY = "destroy"
    STEER = "steer"
    STEER_REFUSED = "steer-refused"
    CRASH = "crash"
    RESTART = "restart"
    FREEZE = "freeze"
    THAW = "thaw"
    GONE = "gone"


class SimEvent(msgspec.Struct, frozen=True):
    """One event at `time_s` seconds from the start.

    `party` is who does it or undergoes it (`agent h1`, `qemu h1`, `memory h1`, `store`, `edge`, `control`, `host h1`); `host` is
    the host that asked (store, edge) or where it happens; `to` is where a steer points. `term` is the record's, or the steer's.
    `record` is what the store answers: the record that exists, or None if there is none. `answered` is False where the answer is
    lost on its way back.
    """

    time_s: float
    kind: EventKind
    party: str
    vm: str = ""
    term: int = 0
    host: str = ""
    to: str = ""
    record: OwnershipRecord | None = None
    answered: bool = True
