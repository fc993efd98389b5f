"""Moving a VM: the use case that accepts a move, and the job that drives it until it has ended.

The source's agent does the work; this side asks it with `MigrateVm`, writes each state down, and asks again with the same id
after a broken connection or its own restart: the agent joins the handover that runs, or tells how it ended. If nobody can tell,
the hosts' reports decide (`handover_track.settle`). Clients may leave; the move goes on.
"""

from __future__ import annotations

import asyncio
import logging

import msgspec

from architect.control.book import Change
from architect.control.fabric import Fabric
from architect.control.fleet import DisconnectedError
from architect.control.followers import Follower, Progress
from architect.control.handover_track import Ends, has_taken_over, settle, steps_to, with_report, with_state
from architect.control.move_spans import compare_clocks, control_spans, with_spans
from architect.control.notices import leave_by_s
from architect.control.records import Desired, EventKind, HostRecord, MigrationRecord, MoveCause, VmRecord
from architect.control.rooms import HostState, host_state, is_gone, room_at
from architect.control.unwanted_move import ask_to_give_up, why_unwanted
from architect.control.views import migration_view
from architect.control.vm_names import error_by_name
from architect.errors import ArchitectError, CapacityError, ConflictError, LostError, NotFoundError, UnavailableError, UsageError
from architect.model.compression import Compression
from architect.model.handover_state import BEFORE_COMMIT, HandoverState, MigrationMode
from architect.model.ids import MigrationId, migration_id
from architect.model.sizes import check_bandwidth, format_size
from architect.model.vm_state import VmState
from architect.policy.evacuation import Move, remaining_s
from architect.policy.placement import NoRoom, place
from architect.runtime.clock_offset import ClockOffset
from architect.wire.agent_messages import MigrateVm, MigrationProgress, MigrationReport, MoveDecision

MOVE_RETRY_S = 1.0
ANSWER_GRACE_S = 10.0

_log = logging.getLogger(__name__)


class MoveWish(msgspec.Struct, frozen=True):
    """What `architect migrate` asks for. `bandwidth_bytes_s`: 0 is no limit, None the source host's default."""

    vm: str
    to: str
    mode: MigrationMode = MigrationMode.AUTO
    verify: bool = False
    bandwidth_bytes_s: int | None = None
    compression: Compression = Compression.AUTO


async def migrate_vm(fabric: Fabric, wish: MoveWish) -> tuple[MigrationRecord, Follower]:
    """Accept a move; the follower tells how it goes and ends in a `MigrationView`, or in the error that refused it.

    Raises:
        NotFoundError: no such VM or host.
        ConflictError: the VM is over, being created, moving already, or there already; the target drains or leaves.
        LostError: the VM is lost.
        UsageError: the bandwidth limit is too low or too high, or a post-copy is to be verified.
        CapacityError: the target has no room.
        UnavailableError: source or target is not connected.
    """
    if wish.bandwidth_bytes_s:  # 0: none
        check_bandwidth(wish.bandwidth_bytes_s, wish.bandwidth_bytes_s)
    if wish.verify and wish.mode is MigrationMode.POSTCOPY:
        cause = "a post-copy's memory is never whole at both ends (its root is proved in any case)"
        raise UsageError("--verify", cause, "leave it out, or use --mode precopy")
    async with fabric.book.change() as change:
        vm = _movable(fabric, wish.vm)
        target = fabric.book.find_host(wish.to)
        check_target(fabric, vm, target)
        source = fabric.book.hosts.get(vm.host)
        notice = source.notice if source is not None else None
        move = Move(vm.id, vm.host, target.name, leave_by_s(notice, change.now_s))
        record = plan_move(fabric, change, vm, move, MoveCause.USER, wish)
    return record, fabric.followers.follow(record.id)


def plan_move(
    fabric: Fabric, change: Change, vm: VmRecord, move: Move, cause: MoveCause, wish: MoveWish | None = None
) -> MigrationRecord:
    """Write a move down as planned; the reconciler starts it. `wish`: how a user wants it."""
    wish = wish if wish is not None else MoveWish(vm.id, move.target)
    record = MigrationRecord(
        id=migration_id(fabric.entropy.random_bytes(6)),
        vm=vm.id,
        vm_name=vm.request.name,
        source=move.source,
        target=move.target,
        mode=wish.mode,
        verify=wish.verify,
        cause=cause,
        source_term=vm.term,
        started_at_s=change.now_s,
        deadline_at_s=move.deadline_at_s,
        bandwidth_bytes_s=wish.bandwidth_bytes_s,
        compression=wish.compression,
    )
    change.put(record)
    change.say(EventKind.MIGRATION_STARTED, f"{move.source} to {move.target} ({cause.value})", host=move.source, move=record)
    return record


def _movable(fabric: Fabric, name: str) -> VmRecord:
    vm = fabric.book.find_vm(name)
    if vm.state is VmState.LOST:
        raise LostError(f"vm {name}", vm.reason or "is lost", f"`architect rm {name}` forgets it")
    if vm.state not in (VmState.RUNNING, VmState.PAUSED):
        raise ConflictError(f"vm {name}", f"is {vm.state.value}, so it cannot move", "move a VM that runs")
    if (running := fabric.book.move_of(vm.id)) is not None:
        raise ConflictError(
            f"vm {name}",
            f"is moving already, {running.source} to {running.target} ({running.id})",
            "wait until that move has ended",
        )
    if vm.desired is not Desired.RUNNING:
        raise ConflictError(f"vm {name}", "is being stopped", "move a VM that is to run on")
    return vm


def check_target(fabric: Fabric, vm: VmRecord, target: HostRecord) -> None:
    """Refuse a target that cannot take the VM now.

    Raises: as `migrate_vm`.
    """
    name = target.name
    if name == vm.host:
        raise ConflictError(f"vm {vm.request.name}", f"is on host {name} already", "name another host")
    state = host_state(fabric, target)
    if state is HostState.LOST or not fabric.fleet.is_here(name) or fabric.fleet.report(name) is None:
        raise UnavailableError(f"host {name}", "is not connected", "see `architect host ls`, and name a host that is ready")
    if state is not HostState.READY:
        raise ConflictError(
            f"host {name}", f"is {state.value} and takes no vm", "see `architect host ls`, and name a host that is ready"
        )
    if isinstance(placement := place(vm.request.memory_bytes, [room_at(fabric, target)]), NoRoom):
        raise CapacityError(f"vm {vm.request.name}", placement.reason, "name a host with more room")
    if not fabric.fleet.is_here(vm.host):
        raise UnavailableError(f"host {vm.host}", f"runs vm {vm.request.name}, and is not connected", "try again when it is back")


async def drive_move(fabric: Fabric, identity: MigrationId) -> None:
    """Carry out a move that was written down, until it has ended. Run as a job, again after a restart.

    While the source's agent is asked, its word counts; what the reports show ends the move only if the agent has not answered
    `ANSWER_GRACE_S` later, or is not connected.
    """
    unseen_since_s = concluded_since_s = fabric.clock.monotonic_s()
    seen = fabric.bell.count
    asking: asyncio.Task[None] | None = None
    told_deadline_s: float | None = None
    told_unwanted = False
    try:
        while not (record := fabric.book.moves[identity]).state.is_terminal:
            now_s = fabric.clock.monotonic_s()
            if _is_seen(fabric, record):
                unseen_since_s = now_s
            settled = _settled(fabric, record, now_s - unseen_since_s)
            if not settled.state.is_terminal:
                concluded_since_s = now_s
            is_asking = asking is not None and not asking.done()
            if settled != record and (not is_asking or not settled.state.is_terminal or now_s - concluded_since_s > ANSWER_GRACE_S):
                await _write(fabric, settled)
                continue
            if is_asking and asking is not None and record.deadline_at_s != told_deadline_s:
                asking.cancel()  # asked again by the same id, the agent goes by the new deadline
                await asyncio.gather(asking, return_exceptions=True)
                is_asking = False
            if not is_asking and fabric.fleet.is_here(record.source) and record.target in fabric.book.hosts:
                told_deadline_s, told_unwanted = record.deadline_at_s, False
                asking = asyncio.create_task(_ask_source(fabric, record))
                asking.add_done_callback(lambda _: fabric.bell.ring())
            if not told_unwanted and (why := why_unwanted(fabric, record)) and fabric.fleet.is_here(record.source):
                told_unwanted = await ask_to_give_up(fabric, record, why)
            seen = await fabric.bell.wait_rung(seen, MOVE_RETRY_S)
    finally:
        if asking is not None:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)


def _is_seen(fabric: Fabric, record: MigrationRecord) -> bool:
    """Whether an end that is connected shows the VM, so that its agent is still about it."""
    return any(sighting.host in (record.source, record.target) for sighting in fabric.fleet.sighted(record.vm))


def _settled(fabric: Fabric, record: MigrationRecord, unseen_s: float) -> MigrationRecord:
    ends = Ends(
        source_lost=fabric.fleet.is_lost(record.source),
        target_lost=fabric.fleet.is_lost(record.target),
        source_gone=is_gone(fabric, record.source),
        target_gone=is_gone(fabric, record.target),
        unseen_s=unseen_s,
        unseen_s_max=fabric.config.host_lost_after_s,
    )
    return settle(record, fabric.fleet.sighted(record.vm), ends, fabric.clock.wall_s())


async def _ask_source(fabric: Fabric, record: MigrationRecord) -> None:
    """Ask the source to carry it out, or to tell how it went; returns when it has answered or the connection broke."""
    request = MigrateVm(
        migration=record.id,
        vm=record.vm,
        target=fabric.book.hosts[record.target].facts,
        mode=record.mode,
        deadline_s=remaining_s(record.deadline_at_s, fabric.clock.wall_s()),
        verify=record.verify,
        bandwidth_bytes_s=record.bandwidth_bytes_s,
        compression=record.compression,
    )
    ordered_at_s = fabric.clock.wall_s()
    clock: ClockOffset | None = None
    try:
        async for message, _ in fabric.fleet.stream(record.source, request):
            if isinstance(message, MigrationProgress):
                report = message.report
                if clock is None and not report.state.is_terminal:
                    clock = await compare_clocks(fabric, record.source)
                if clock is not None:
                    report = with_spans(report, control_spans(fabric, record, ordered_at_s, clock, report))
                await _note_report(fabric, record.id, report)
        if not fabric.book.moves[record.id].state.is_terminal:
            await fabric.clock.sleep(MOVE_RETRY_S)
    except DisconnectedError as error:
        _log.info("%s: %s; it is taken up again", record.id, error)
        await fabric.clock.sleep(MOVE_RETRY_S / 10)
    except ArchitectError as error:
        await _refused(fabric, record.id, error)


async def _note_report(fabric: Fabric, identity: MigrationId, report: MigrationReport) -> None:
    record = fabric.book.moves[identity]
    after = with_report(record, report, fabric.clock.wall_s())
    fabric.followers.say(identity, Progress(progress_line(report), report.progress, identity))
    if after.state is not record.state:
        await _write(fabric, after)


def progress_line(report: MigrationReport) -> str:
    """How a move stands, for people: its state, how far it is, and what was seen last while it copies."""
    parts = [report.state.value]
    if report.progress:
        parts.append(f"{report.progress:.0%}")
    if report.state is HandoverState.PRECOPY and (seen := _latest(report)) is not None:
        parts.append(f"round {seen.round}")
        parts.append(f"{format_size(seen.dirty_bytes + seen.disk_bytes)} left")
        if seen.bandwidth_bytes_s:
            parts.append(f"{format_size(seen.bandwidth_bytes_s)}/s")
        if seen.remaining_s is not None:
            parts.append(f"{max(seen.remaining_s, 0):.0f} s until it must be gone")
    return ", ".join(parts)


def _latest(report: MigrationReport) -> MoveDecision | None:
    told = [seen for seen in (report.look, report.decisions[-1] if report.decisions else None) if seen is not None]
    return max(told, key=lambda seen: seen.at_s, default=None)


async def _refused(fabric: Fabric, identity: MigrationId, error: ArchitectError) -> None:
    """The source's agent says no. Before the commit that ends the move; after it, the reports tell."""
    record = fabric.book.moves[identity]
    if record.state.is_terminal:
        return
    target_has_it = any(has_taken_over(record, sighting) for sighting in fabric.fleet.sighted(record.vm))
    awaits_report = isinstance(error, NotFoundError) and not fabric.fleet.is_lost(record.target) and await _appears(fabric, record)
    record = fabric.book.moves[identity]
    if record.state not in BEFORE_COMMIT or target_has_it or awaits_report:
        await fabric.clock.sleep(MOVE_RETRY_S)
    else:
        failed = with_state(record, HandoverState.FAILED, fabric.clock.wall_s(), f"{error.thing}: {error.cause}")
        await _write(fabric, failed, error)


async def _appears(fabric: Fabric, record: MigrationRecord) -> bool:
    """The source does not know the VM: give the target's report a moment to show it."""
    deadline_s = fabric.clock.monotonic_s() + fabric.config.host_lost_after_s
    seen = fabric.bell.count
    while (left_s := deadline_s - fabric.clock.monotonic_s()) > 0:
        if any(has_taken_over(record, sighting) for sighting in fabric.fleet.sighted(record.vm)):
            return True
        seen = await fabric.bell.wait_rung(seen, left_s)
    return False


async def _write(fabric: Fabric, record: MigrationRecord, error: ArchitectError | None = None) -> None:
    """Write down where the move stands; at its end also where the VM is, and tell the followers.

    What was concluded from an older look than what is written down by now is dropped.
    """
    async with fabric.book.change() as change:
        before = fabric.book.moves.get(record.id)
        if before is not None and steps_to(before.state, record.state) is None:
            return
        change.put(record)
        vm = fabric.book.vms.get(record.vm)
        match record.state:
            case HandoverState.DONE:
                if vm is not None:
                    term = max(vm.term, record.source_term + 1)
                    change.put(msgspec.structs.replace(vm, host=record.target, term=term))
                change.say(EventKind.MIGRATION_DONE, _pause(record.report), host=record.target, move=record)
            case HandoverState.FAILED | HandoverState.LOST:
                change.say(EventKind.MIGRATION_FAILED, record.reason, host=record.source, move=record)
            case state if before is None or before.state is not state:
                change.say(EventKind.MIGRATION_STATE, state.value, host=record.source, move=record)
            case _:
                pass  # said before
    if record.state.is_terminal:
        named = error_by_name(error, record.vm, record.vm_name) if error is not None else None
        fabric.followers.finish(record.id, named or migration_view(record))


def _pause(report: MigrationReport | None) -> str:
    if report is None or report.downtime_ms is None:
        return "its pause is not known: who knew has fallen silent"
    return f"pause {report.downtime_ms:.0f} ms"
