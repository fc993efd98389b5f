"""Deadlines of moves under way: a notice that comes, changes or goes while a VM moves becomes that move's deadline.

Only the record is changed here; the job that drives the move (`move_vm.drive_move`) tells the source's agent, whose running
handover decides by the new deadline from then on.
"""

from __future__ import annotations

import msgspec

from architect.control.fabric import Fabric
from architect.control.notices import has_readable_deadline, leave_by_s
from architect.control.records import EventKind, MigrationRecord
from architect.model.handover_state import BEFORE_COMMIT
from architect.model.times import rfc3339

DEADLINE_STEP_S = 0.5


async def take_up_deadlines(fabric: Fabric) -> None:
    """Give every move that is not committed the deadline that its source's notice sets now."""
    news = [(move, due_s) for move in fabric.book.open_moves() if (due_s := _due_s(fabric, move)) != move.deadline_at_s]
    if not news:
        return
    async with fabric.book.change() as change:
        for move, due_s in news:
            if fabric.book.moves.get(move.id) != move:
                continue
            after = msgspec.structs.replace(move, deadline_at_s=due_s)
            change.put(after)
            text = f"must be over by {rfc3339(due_s)}" if due_s is not None else "has no deadline any more"
            change.say(EventKind.MIGRATION_STATE, f"{move.state.value}, {text}", host=move.source, move=after)


def _due_s(fabric: Fabric, move: MigrationRecord) -> float | None:
    """The move's deadline by its source's notice; as it was where nothing clearly new is known."""
    host = fabric.book.hosts.get(move.source)
    if host is None or move.state not in BEFORE_COMMIT:
        return move.deadline_at_s
    known_s = move.deadline_at_s
    if known_s is not None and host.notice is not None and not has_readable_deadline(host.notice):
        return known_s  # it was guessed once; it must not slide
    due_s = leave_by_s(host.notice, fabric.clock.wall_s())
    if known_s is not None and due_s is not None and abs(due_s - known_s) < DEADLINE_STEP_S:
        return known_s
    return due_s
