"""What users read: a host, a VM, a move, an event as JSON (DESIGN §5). Times are RFC 3339 in UTC, sizes are bytes."""

from __future__ import annotations

import itertools

import msgspec

from architect.control.fabric import Fabric
from architect.control.records import EventKind, EventRecord, HostRecord, MigrationRecord, VmRecord
from architect.control.remove_host import needed_for
from architect.control.rooms import HostState, free_bytes, host_state
from architect.control.vm_names import by_name
from architect.model.endpoints import Endpoint
from architect.model.handover_span import Span
from architect.model.handover_state import HandoverState
from architect.model.ids import MigrationId
from architect.model.notice import NoticeKind
from architect.model.times import rfc3339
from architect.model.vm_state import VmState
from architect.wire.agent_messages import MigrationReport, MoveDecision, Phase

_MOVE_ENDS = (EventKind.MIGRATION_DONE, EventKind.MIGRATION_FAILED)
EVENTS_AT_ONCE = 256


class NoticeView(msgspec.Struct, frozen=True):
    """A notice: why and until when."""

    kind: NoticeKind
    deadline: str


class HostView(msgspec.Struct, frozen=True):
    """A host, as `host ls` prints it. `vms` counts those that are not over, and those that left it and still need it."""

    name: str
    provider: str
    region: str
    state: HostState
    vms: int
    memory_bytes: int
    memory_free_bytes: int
    notice: NoticeView | None


class EpochView(msgspec.Struct, frozen=True):
    """The last committed epoch of a VM."""

    number: int
    committed_at: str
    lag_s: float
    lag_bytes: int


class VmView(msgspec.Struct, frozen=True):
    """A VM, as `ps` and `inspect` print it."""

    id: str
    name: str
    image: str
    state: VmState
    reason: str
    host: str
    term: int
    exit_code: int | None
    endpoints: tuple[Endpoint, ...]
    memory_bytes: int
    cpus: int
    last_epoch: EpochView | None
    restarts: int
    created_at: str


class BytesBySource(msgspec.Struct, frozen=True):
    """Where a move's bytes came from."""

    peer: int
    store: int
    base: int


class MigrationView(msgspec.Struct, frozen=True):
    """A move, as `migrate` prints it. `state` is the handover's; `outcome` is empty while it goes on. `decisions` say what was seen
    after each round, and why the move went on, waited or cut. Without compression `bytes_saved` more would have been sent, that is
    `compression_ratio` times as much. `is_complete`: the source has told the figures at the end; otherwise they are those of its
    last report, before it fell silent or while the move goes on, and `downtime_ms` may not be known."""

    vm: str
    source: str
    target: str
    mode: str
    outcome: str
    reason: str
    total_s: float
    downtime_ms: float | None
    rounds: int
    bytes_sent: int
    bytes_by_source: BytesBySource
    phases: tuple[Phase, ...]
    spans: tuple[Span, ...]
    clock_error_ms: float | None
    id: str
    cause: str
    state: HandoverState
    memory_bytes: int
    bytes_saved: int
    compression_ratio: float
    verified: bool | None
    started_at: str
    decisions: tuple[MoveDecision, ...] = ()
    is_complete: bool = False


class EventView(msgspec.Struct, frozen=True):
    """An event, as `events` prints it. The end of a move has its spans, without their parts."""

    time: str
    kind: str
    vm: str
    host: str
    message: str
    vm_id: str
    migration: str
    sequence: int
    spans: tuple[Span, ...]


class DrainView(msgspec.Struct, frozen=True):
    """What `host drain` did: names of VMs that left, and of those that could not."""

    host: str
    moved: tuple[str, ...]
    left: tuple[str, ...]


def host_view(fabric: Fabric, record: HostRecord) -> HostView:
    """A host now."""
    notice = record.notice
    return HostView(
        name=record.name,
        provider=record.facts.provider,
        region=record.facts.region,
        state=host_state(fabric, record),
        vms=len(needed_for(fabric, record.name)),
        memory_bytes=record.facts.memory_bytes,
        memory_free_bytes=free_bytes(fabric, record.name),
        notice=NoticeView(notice.kind, notice.deadline) if notice is not None else None,
    )


def vm_view(fabric: Fabric, record: VmRecord) -> VmView:
    """A VM now: a move under way shows as `migrating`, and why it cannot leave its host as `reason`."""
    moving = record.state in (VmState.RUNNING, VmState.PAUSED) and fabric.book.move_of(record.id) is not None
    return VmView(
        id=record.id,
        name=record.request.name,
        image=record.request.image,
        state=VmState.MIGRATING if moving else record.state,
        reason=by_name(record.reason or fabric.stuck.get(record.id, ""), record.id, record.request.name),
        host=record.host,
        term=record.term,
        exit_code=record.exit_code,
        endpoints=record.endpoints,
        memory_bytes=record.request.memory_bytes,
        cpus=record.request.cpus,
        last_epoch=None,
        restarts=record.restarts,
        created_at=rfc3339(record.created_at_s),
    )


def migration_view(record: MigrationRecord) -> MigrationView:
    """A move as far as it got."""
    report = record.report
    outcome = {HandoverState.DONE: "done", HandoverState.FAILED: "failed", HandoverState.LOST: "failed"}.get(record.state, "")
    return MigrationView(
        vm=record.vm_name,
        source=record.source,
        target=record.target,
        mode=(report.mode if report is not None else record.mode).value,
        outcome=outcome,
        reason=by_name(record.reason, record.vm, record.vm_name),
        total_s=_total_s(record),
        downtime_ms=report.downtime_ms if report is not None else None,
        rounds=report.rounds if report is not None else 0,
        bytes_sent=report.bytes_sent if report is not None else 0,
        bytes_by_source=BytesBySource(report.bytes_peer, report.bytes_store, report.bytes_base)
        if report is not None
        else BytesBySource(0, 0, 0),
        phases=report.phases if report is not None else (),
        spans=report.spans if report is not None else (),
        clock_error_ms=report.clock_error_ms if report is not None else None,
        id=record.id,
        cause=record.cause.value,
        state=record.state,
        memory_bytes=report.memory_bytes if report is not None else 0,
        bytes_saved=report.bytes_saved if report is not None else 0,
        compression_ratio=_ratio(report),
        verified=report.verified if report is not None else None,
        started_at=rfc3339(record.started_at_s),
        decisions=report.decisions if report is not None else (),
        is_complete=report is not None and report.state.is_terminal,
    )


def _ratio(report: MigrationReport | None) -> float:
    return round(1 + report.bytes_saved / report.bytes_sent, 2) if report is not None and report.bytes_sent else 1.0


async def event_views(fabric: Fabric, after: int) -> list[EventView]:
    """The next events after that sequence number, oldest first, at most `EVENTS_AT_ONCE`; none, if there are none.

    Raises:
        HostError: the database refused to tell the spans of moves.
    """
    newer = (event for event in fabric.book.events if event.sequence > after)
    records = list(itertools.islice(newer, EVENTS_AT_ONCE))
    ended = [MigrationId(record.migration) for record in records if record.kind in _MOVE_ENDS]
    moves = {move.id: move for move in await fabric.book.read_moves(ended)}
    return [_event_view(record, moves.get(MigrationId(record.migration))) for record in records]


def _event_view(record: EventRecord, move: MigrationRecord | None) -> EventView:
    report = move.report if move is not None and record.kind in _MOVE_ENDS else None
    return EventView(
        time=rfc3339(record.time_s),
        kind=record.kind.value,
        vm=record.vm,
        host=record.host,
        message=by_name(record.message, record.vm_id, record.vm),
        vm_id=record.vm_id,
        migration=record.migration,
        sequence=record.sequence,
        spans=tuple(span for span in report.spans if not span.parent) if report is not None else (),
    )


def _total_s(record: MigrationRecord) -> float:
    if record.report is not None and (record.ended_at_s is None or record.report.state.is_terminal):
        return record.report.total_s
    return max((record.ended_at_s or record.started_at_s) - record.started_at_s, 0.0)
