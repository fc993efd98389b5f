"""Sightings: what the agents' reports say about a VM, and what the record says after that. Pure, but for the change they write to.

The reports are the truth about what runs. Of several hosts that report a VM, the one with the higher term owns it; a term lower
than the record's is an old copy and is ignored; an equal term on another host is a target that is still receiving.
"""

from __future__ import annotations

import msgspec

from architect.control.book import Change
from architect.control.fabric import Fabric
from architect.control.records import EventKind, VmRecord
from architect.control.sighting_index import Sighted
from architect.model.ids import HostName
from architect.model.vm_state import VmState
from architect.wire.agent_messages import VmObservation

_EVENTS = {
    VmState.RUNNING: EventKind.VM_RUNNING,
    VmState.PAUSED: EventKind.VM_PAUSED,
    VmState.RESTORING: EventKind.VM_RESTORING,
    VmState.PARKED: EventKind.VM_PARKED,
    VmState.EXITED: EventKind.VM_EXITED,
    VmState.STOPPED: EventKind.VM_STOPPED,
    VmState.LOST: EventKind.VM_LOST,
}


def owner_of(record: VmRecord, sightings: list[Sighted]) -> Sighted | None:
    """Who owns the VM, by the reports; None if no report can tell."""
    able = [
        sighting
        for sighting in sightings
        if sighting.observation.term > record.term or (sighting.observation.term == record.term and sighting.host == record.host)
    ]
    return max(able, key=lambda sighting: (sighting.observation.term, sighting.host == record.host), default=None)


def after_sighting(record: VmRecord, sighting: Sighted) -> VmRecord:
    """The record once its owner's report was seen. `migrating` is a running VM; that it moves is known from its move."""
    observation = sighting.observation
    state = VmState.RUNNING if observation.state is VmState.MIGRATING else observation.state
    return msgspec.structs.replace(
        record,
        state=state,
        host=sighting.host,
        term=observation.term,
        reason=observation.reason,
        exit_code=observation.exit_code,
    )


def write_sighting(record: VmRecord, after: VmRecord, change: Change) -> None:
    """Write the record if it differs, with an event if its state does."""
    if after == record:
        return
    change.put(after)
    if after.state is not record.state and (kind := _EVENTS.get(after.state)) is not None:
        detail = f"exit code {after.exit_code}" if after.exit_code is not None else ""
        change.say(kind, ", ".join(part for part in (detail, after.reason) if part), vm=after)


async def note_answer(fabric: Fabric, host: HostName, observation: VmObservation) -> None:
    """Take an agent's answer about a VM like a report."""
    fabric.fleet.amend(host, observation, observation.id)
    async with fabric.book.change() as change:
        record = fabric.book.vms.get(observation.id)
        sighting = Sighted(host, observation)
        if record is not None and owner_of(record, [sighting]) is not None:
            write_sighting(record, after_sighting(record, sighting), change)
