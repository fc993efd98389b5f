"""What a target does with an earlier handover of a VM that a new one wants to bring."""

from __future__ import annotations

import msgspec
import pytest

from architect.errors import ConflictError
from architect.migration.leftover import check_asker, check_ended, check_newest
from architect.migration.target_engine import TargetState, TargetStep
from architect.model.ownership import OwnershipRecord, RecordKind
from architect.wire.migration_messages import Prepare
from tests.migration.handover_values import plan, record

PLAN = plan()
PREPARE = Prepare(PLAN.migration, PLAN.spec, 3, PLAN.source, PLAN.mode)


@pytest.mark.parametrize(
    ("latest", "words"),
    [
        pytest.param(None, "nobody's", id="nobody has ever owned it"),
        pytest.param(record("a", RecordKind.END, 4), "nobody's", id="it was ended"),
        pytest.param(record("b", RecordKind.RUN, 4), "host b's", id="it has been handed over"),
        pytest.param(record("b", RecordKind.ABORT, 4), "host b's", id="another host keeps it"),
    ],
)
def test_who_does_not_own_the_vm_may_not_end_its_leftover(latest: OwnershipRecord | None, words: str) -> None:
    with pytest.raises(ConflictError, match=words):
        check_asker(PREPARE, latest)


@pytest.mark.parametrize("latest", [record("a", RecordKind.RUN, 3), record("a", RecordKind.ABORT, 4)])
def test_its_owner_may(latest: OwnershipRecord) -> None:
    check_asker(PREPARE, latest)


@pytest.mark.parametrize("step", list(TargetStep))
def test_a_leftover_is_out_of_the_way_only_when_it_has_ended_without_the_vm(step: TargetStep) -> None:
    state = TargetState(PREPARE, "b", step=step)
    if step in (TargetStep.FAILED, TargetStep.LOST):
        check_ended(state)
        return
    with pytest.raises(ConflictError, match="taken over by host b"):
        check_ended(state)


def test_a_leftover_that_lost_the_vm_by_its_own_record_is_no_leftover() -> None:
    owned = TargetState(PREPARE, "b", step=TargetStep.LOST, record=record("b", RecordKind.RUN, PREPARE.term + 1))
    with pytest.raises(ConflictError, match="was taken over by host b"):
        check_ended(owned)


def test_a_handover_that_goes_from_an_older_record_is_refused_before_it_stops_the_guest() -> None:
    check_newest(PREPARE, record("a", RecordKind.RUN, PREPARE.term))
    with pytest.raises(ConflictError, match="record 4 was written since this move began"):
        check_newest(PREPARE, record("a", RecordKind.ABORT, PREPARE.term + 1))
    with pytest.raises(ConflictError, match="not host"):
        check_newest(msgspec.structs.replace(PREPARE, term=4), record("b", RecordKind.RUN, 4))
