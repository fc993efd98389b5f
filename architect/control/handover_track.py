"""Following a handover: from what is written down to what an agent or a report shows, along the table of `model.handover_state`.

Control sees samples, not steps: a report may be several states further than the record. `steps_to` walks the table, so that a
record never gets to a state by a way that does not exist. `settle` reads the outcome from the hosts' reports alone, for the
time after a restart or a broken connection, when nobody answers.
"""

from __future__ import annotations

from collections import deque

import msgspec

from architect.control.move_spans import joined
from architect.control.records import MigrationRecord
from architect.control.sighting_index import Sighted
from architect.model.handover_state import BEFORE_COMMIT, TRANSITIONS, HandoverEvent, HandoverState
from architect.model.state_machine import advance
from architect.model.vm_state import VmState
from architect.wire.agent_messages import MigrationReport


class Ends(msgspec.Struct, frozen=True):
    """What is known of the two ends: whether they are lost (silent) or gone for good, and for how long both sides' reports have
    been silent about the VM."""

    source_lost: bool
    target_lost: bool
    source_gone: bool
    target_gone: bool
    unseen_s: float
    unseen_s_max: float


def steps_to(state: HandoverState, wanted: HandoverState) -> tuple[HandoverEvent, ...] | None:
    """The shortest way from a state to another one; None if there is none."""
    ways: deque[tuple[HandoverState, tuple[HandoverEvent, ...]]] = deque([(state, ())])
    visited = {state}
    while ways:
        here, way = ways.popleft()
        if here is wanted:
            return way
        for event, there in TRANSITIONS[here].items():
            if there not in visited:
                visited.add(there)
                ways.append((there, (*way, event)))
    return None


def with_state(record: MigrationRecord, wanted: HandoverState, now_s: float, reason: str = "") -> MigrationRecord:
    """The record in the wanted state, reached step by step; unchanged if no way leads there (an old report)."""
    steps = steps_to(record.state, wanted)
    if not steps:
        return record
    state = record.state
    for event in steps:
        state = advance(TRANSITIONS, state, event)
    ended_at_s = now_s if state.is_terminal else None
    return msgspec.structs.replace(record, state=state, reason=reason or record.reason, ended_at_s=ended_at_s)


def with_report(record: MigrationRecord, report: MigrationReport, now_s: float) -> MigrationRecord:
    """The record after an agent told how the handover stands."""
    if report.id != record.id or record.state.is_terminal:
        return record
    return with_state(msgspec.structs.replace(record, report=joined(record.report, report)), report.state, now_s, report.reason)


def has_taken_over(record: MigrationRecord, sighting: Sighted) -> bool:
    """Whether this shows that the target has the VM: by a newer term, and not as one that is still to come."""
    seen = sighting.observation
    return sighting.host == record.target and seen.term > record.source_term and seen.state is not VmState.MIGRATING


def settle(record: MigrationRecord, sightings: list[Sighted], ends: Ends, now_s: float) -> MigrationRecord:
    """The record after a look at the reports: ended if they leave no doubt, else as far as they show.

    The VM running at the target under a higher term is the commit. It is done when the target lacks nothing of it, and the source
    is gone or no longer has it.
    """
    for sighting in sightings:
        report = sighting.observation.migration
        if report is not None and report.id == record.id and report.state.is_terminal:
            return with_report(record, report, now_s)
    target = next((sighting.observation for sighting in sightings if has_taken_over(record, sighting)), None)
    if target is not None:
        if target.state is VmState.LOST:
            lost = with_state(record, HandoverState.POSTCOPY, now_s)
            return with_state(lost, HandoverState.LOST, now_s, target.reason or "the target lost it")
        if target.migration is not None and target.migration.id == record.id:
            return with_report(record, target.migration, now_s)
        if target.fills_from == record.source:
            return with_state(record, HandoverState.POSTCOPY, now_s)
        if ends.source_lost or not any(sighting.host == record.source for sighting in sightings):
            return with_state(record, HandoverState.DONE, now_s)
        return with_state(record, HandoverState.COMMITTED, now_s)
    return _settle_unseen(record, ends, now_s)


def _settle_unseen(record: MigrationRecord, ends: Ends, now_s: float) -> MigrationRecord:
    """Nobody shows the VM under a new term; when both ends have had their time to, that is an answer, too.

    Before the commit a silent source is enough: the move can be tried again. Only a host that is gone loses a VM.
    """
    if ends.unseen_s <= ends.unseen_s_max:
        return record
    if record.state in BEFORE_COMMIT:
        reason = f"host {record.source} fell silent during the move"
        return with_state(record, HandoverState.FAILED, now_s, reason) if ends.source_lost else record
    gone = [host for host, is_gone in ((record.source, ends.source_gone), (record.target, ends.target_gone)) if is_gone]
    if not gone:
        return record
    lost = with_state(record, HandoverState.POSTCOPY, now_s)
    return with_state(lost, HandoverState.LOST, now_s, f"{' and '.join(gone)} vanished during the move")
