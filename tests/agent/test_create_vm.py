"""Creating a VM: its first ownership record, whatever becomes of requests and answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from architect.agent.create_vm import write_first_record
from architect.errors import ConflictError, OutcomeUnknownError
from architect.model.ownership import RecordKind
from architect.testing.fake_ownership import Delivery, FakeOwnershipLog, Fault, OwnershipTable
from architect.testing.virtual_time import LoopClock, run_virtual
from tests.control.rig import CountingEntropy
from tests.migration.handover_values import VM, record, spec


def _host(log: FakeOwnershipLog) -> Any:
    return SimpleNamespace(config=SimpleNamespace(name="a"), ownership=log, clock=LoopClock(), entropy=CountingEntropy())


@pytest.mark.parametrize(
    "lost",
    [[Delivery.REQUEST_LOST], [Delivery.ANSWER_LOST], [Delivery.UNREACHABLE, Delivery.ANSWER_LOST, Delivery.REQUEST_LOST]],
    ids=["request lost", "answer lost", "several"],
)
def test_the_first_record_is_asked_for_until_it_is_known(lost: list[Delivery]) -> None:
    async def test() -> None:
        log = FakeOwnershipLog(OwnershipTable(), LoopClock())
        log.planned.extend(map(Fault, lost))
        await write_first_record(_host(log), spec())
        (written,) = log.table.records[VM]
        assert (written.term, written.kind, written.host) == (1, RecordKind.RUN, "a")

    run_virtual(test())


def test_another_hosts_record_is_a_conflict_also_after_a_lost_answer() -> None:
    async def test() -> None:
        log = FakeOwnershipLog(OwnershipTable(), LoopClock())
        log.table.create(record("b", RecordKind.RUN, 1))
        log.planned.append(Fault(Delivery.ANSWER_LOST))
        with pytest.raises(ConflictError, match="host b owns it already"):
            await write_first_record(_host(log), spec())

    run_virtual(test())


def test_a_log_that_stays_away_undoes_the_creation_after_a_while() -> None:
    async def test() -> None:
        log = FakeOwnershipLog(OwnershipTable(), LoopClock())
        log.usual = Fault(Delivery.UNREACHABLE)
        with pytest.raises(OutcomeUnknownError):
            await write_first_record(_host(log), spec())

    run_virtual(test())
