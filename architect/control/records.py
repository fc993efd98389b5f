"""What the control plane writes down: VMs, hosts, moves, events. Frozen values; `book` keeps them, `schema` stores them.

A VM's record holds what the user wants (`desired`) and what was last seen (`state`, `host`, `term`, `exit_code`). The agents'
reports are the truth about the latter; the record remembers it over a restart. A record whose desired state is REMOVED is a
tombstone: users do not see it any more, and it stays until host and edge have confirmed that nothing is left there.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from architect.model.compression import Compression
from architect.model.endpoints import Endpoint
from architect.model.handover_state import HandoverState, MigrationMode
from architect.model.ids import HostName, MigrationId, VmId
from architect.model.notice import Notice
from architect.model.vm_spec import VmRequest
from architect.model.vm_state import VmState
from architect.wire.agent_messages import HostFacts, MigrationReport


class Desired(StrEnum):
    """What the user wants of a VM."""

    RUNNING = "running"
    STOPPED = "stopped"
    REMOVED = "removed"


class MoveCause(StrEnum):
    """Why a move was started."""

    USER = "user"
    DRAIN = "drain"
    NOTICE = "notice"


class VmRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One VM. `host` is where it was placed or last seen; `at_edge` says that its services are (perhaps) defined there."""

    request: VmRequest
    created_at_s: float
    desired: Desired = Desired.RUNNING
    state: VmState = VmState.CREATING
    host: HostName = HostName("")
    term: int = 0
    reason: str = ""
    exit_code: int | None = None
    endpoints: tuple[Endpoint, ...] = ()
    at_edge: bool = False
    stop_grace_s: float = 10.0
    restarts: int = 0

    @property
    def id(self) -> VmId:
        """The VM's id."""
        return self.request.id

    @property
    def is_tombstone(self) -> bool:
        """Whether the VM is gone for its user."""
        return self.desired is Desired.REMOVED


class HostRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One host, known since its agent's first Hello. `acknowledged` is the id of the notice that was acknowledged last."""

    facts: HostFacts
    draining: bool = False
    notice: Notice | None = None
    acknowledged: str = ""

    @property
    def name(self) -> HostName:
        """The host's name."""
        return self.facts.name


class MigrationRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One move. `source_term` is the VM's term when it was planned; `deadline_at_s` is wall time; `report` is the latest seen.
    `bandwidth_bytes_s` is what it may send; 0: no limit, None: the source host's default."""

    id: MigrationId
    vm: VmId
    vm_name: str
    source: HostName
    target: HostName
    mode: MigrationMode
    verify: bool
    cause: MoveCause
    source_term: int
    started_at_s: float
    state: HandoverState = HandoverState.PLANNED
    deadline_at_s: float | None = None
    ended_at_s: float | None = None
    reason: str = ""
    report: MigrationReport | None = None
    bandwidth_bytes_s: int | None = None
    compression: Compression = Compression.AUTO

    def brief(self) -> MigrationRecord:
        """The move as the book holds it: without its report once it has ended."""
        return msgspec.structs.replace(self, report=None) if self.state.is_terminal and self.report is not None else self


class EventKind(StrEnum):
    """What can happen."""

    CONTROL_STARTED = "control-started"
    HOST_JOINED = "host-joined"
    HOST_BACK = "host-back"
    HOST_LOST = "host-lost"
    HOST_DRAINING = "host-draining"
    HOST_OPENED = "host-opened"
    HOST_EMPTY = "host-empty"
    HOST_REMOVED = "host-removed"
    NOTICE = "notice"
    NOTICE_WITHDRAWN = "notice-withdrawn"
    VM_CREATING = "vm-creating"
    VM_RUNNING = "vm-running"
    VM_CREATION_FAILED = "vm-creation-failed"
    VM_ADOPTED = "vm-adopted"
    VM_EXITED = "vm-exited"
    VM_STOPPED = "vm-stopped"
    VM_PAUSED = "vm-paused"
    VM_PARKED = "vm-parked"
    VM_RESTORING = "vm-restoring"
    VM_LOST = "vm-lost"
    VM_WAITS = "vm-waits"
    VM_STUCK = "vm-stuck"
    VM_REMOVED = "vm-removed"
    MIGRATION_STARTED = "migration-started"
    MIGRATION_STATE = "migration-state"
    MIGRATION_DONE = "migration-done"
    MIGRATION_FAILED = "migration-failed"
    DEFECT = "defect"


class EventRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Something that happened. `vm` is a name; `sequence` grows by one per event."""

    sequence: int
    time_s: float
    kind: EventKind
    vm: str = ""
    vm_id: str = ""
    host: str = ""
    migration: str = ""
    message: str = ""
