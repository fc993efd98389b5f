"""A target's leftover: an earlier handover of a VM that has not ended when a new one of the same VM asks to come. Pure.

Its agent was killed, or its source's: it stands somewhere and waits for somebody who may never speak. The new handover need not
wait with it. It is asked to end as its source may ask at any time (`TargetSession.abort`), and waited for; that is safe because:

- Who asks must own the VM by the newest record. So the old handover's source has given it up, or is gone; no stranger can end it.
- A leftover before its claim ends at once. One in its claim is never ended: it waits until it knows which record exists for its
  number. Records are created once: if that number is somebody else's, the leftover ends without the VM; if it is its own, the VM
  runs here, and the new handover is refused. So both are never there.
- The new handover must go from the newest record, read when the leftover has ended: a target whose agent was started again has
  written an abort record, by which the old term is over.
"""

from __future__ import annotations

from architect.errors import ConflictError
from architect.migration.target_engine import TargetState, TargetStep
from architect.model.ownership import OwnershipRecord, RecordKind
from architect.wire.migration_messages import Prepare


def check_asker(request: Prepare, latest: OwnershipRecord | None) -> None:
    """Refuse a handover from a host that does not own the VM.

    Raises:
        ConflictError: it does not, by the newest record.
    """
    if latest is None or latest.kind is RecordKind.END or latest.host != request.source.name:
        owner = "nobody's" if latest is None or latest.kind is RecordKind.END else f"host {latest.host}'s"
        cause = f"by the ownership log it is {owner}, not host {request.source.name}'s to move"
        raise ConflictError(f"vm {request.spec.request.name}", cause, "see `architect inspect` for where it runs")


def check_ended(state: TargetState) -> None:
    """Refuse while a leftover may still take the VM over, or if it has.

    Raises:
        ConflictError: so it is.
    """
    vm, migration = state.request.spec.request.name, state.request.migration
    if state.step is TargetStep.RUNNING or state.owns:
        raise ConflictError(f"vm {vm}", f"was taken over by host {state.host} in handover {migration}", "see `architect ps`")
    if not state.step.is_terminal:
        raise ConflictError(
            f"vm {vm}", f"is being taken over by host {state.host} in handover {migration} ({state.step.value})", "wait for its end"
        )


def check_newest(request: Prepare, latest: OwnershipRecord | None) -> None:
    """Refuse a handover that goes from an older record than the newest: its claim could only fail, with the guest stopped.

    Raises:
        ConflictError: so it is.
    """
    check_asker(request, latest)
    assert latest is not None
    if latest.term != request.term:
        cause = f"record {latest.term} was written since this move began, by the one before it"
        raise ConflictError(f"vm {request.spec.request.name}", cause, "move it again")
