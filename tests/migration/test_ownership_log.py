"""The ownership log: every adapter keeps every promise, and an unknown outcome is never taken for an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from architect.errors import OutcomeUnknownError, UnavailableError
from architect.migration.ownership_directory import DirectoryOwnershipLog
from architect.migration.ownership_log import OwnershipLog, TermConflictError, create_until_known
from architect.model.ownership import RecordKind
from architect.testing.fake_ownership import Delivery, FakeOwnershipLog, Fault, OwnershipTable
from architect.testing.ownership_conformance import CASES, VM, Case, record


class StepClock:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic_s(self) -> float:
        return self.now_s

    def wall_s(self) -> float:
        return self.now_s

    async def sleep(self, duration_s: float) -> None:
        self.now_s += duration_s
        await asyncio.sleep(0)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
@pytest.mark.parametrize("adapter", ["directory", "fake"])
def test_every_adapter_keeps_every_promise(tmp_path: Path, adapter: str, case: Case) -> None:
    table = OwnershipTable()

    def fake() -> OwnershipLog:
        return FakeOwnershipLog(table, StepClock())

    def directory() -> OwnershipLog:
        return DirectoryOwnershipLog(tmp_path / "ownership")

    another: Callable[[], OwnershipLog] = fake if adapter == "fake" else directory
    asyncio.run(case(another(), another))


@pytest.mark.parametrize("delivery", [Delivery.ANSWER_LOST, Delivery.REQUEST_LOST])
def test_a_lost_call_is_an_unknown_outcome(delivery: Delivery) -> None:
    log = FakeOwnershipLog(OwnershipTable(), StepClock())
    log.planned.append(Fault(delivery))
    with pytest.raises(OutcomeUnknownError):
        asyncio.run(log.create(record(1)))
    found = asyncio.run(log.latest(VM))
    assert found == (record(1) if delivery is Delivery.ANSWER_LOST else None)


def test_delays_pass_on_the_clock_alone() -> None:
    clock = StepClock()
    log = FakeOwnershipLog(OwnershipTable(), clock)
    log.usual = Fault(before_s=3.0, after_s=4.0)
    asyncio.run(log.create(record(1)))
    assert clock.now_s == 7.0


@pytest.mark.parametrize(
    "faults", [[Delivery.ANSWER_LOST], [Delivery.REQUEST_LOST, Delivery.UNREACHABLE, Delivery.ANSWER_LOST, Delivery.ANSWER_LOST]]
)
def test_an_author_learns_that_it_won_though_its_answers_were_lost(faults: list[Delivery]) -> None:
    log = FakeOwnershipLog(OwnershipTable(), StepClock())
    log.planned.extend(Fault(delivery) for delivery in faults)
    assert asyncio.run(create_until_known(log, record(1), StepClock(), 10.0)) == record(1)


def test_an_author_learns_that_it_lost_while_it_could_not_ask() -> None:
    table = OwnershipTable()
    log = FakeOwnershipLog(table, StepClock())
    log.planned.append(Fault(Delivery.REQUEST_LOST))
    rival = record(1, "w2", RecordKind.ABORT)
    table.create(rival)
    assert asyncio.run(create_until_known(log, record(1), StepClock(), 10.0)) == rival


def test_what_stays_unknown_is_told_as_unknown() -> None:
    log = FakeOwnershipLog(OwnershipTable(), StepClock())
    log.usual = Fault(Delivery.UNREACHABLE)
    with pytest.raises(OutcomeUnknownError, match="no answer within 2"):
        asyncio.run(create_until_known(log, record(1), StepClock(), 2.0))


def test_a_conflict_is_not_repeated() -> None:
    clock = StepClock()
    with pytest.raises(TermConflictError):
        asyncio.run(create_until_known(FakeOwnershipLog(OwnershipTable(), clock), record(5), clock, 10.0))
    assert clock.now_s == 0.0


def test_an_unreachable_log_says_so() -> None:
    log = FakeOwnershipLog(OwnershipTable(), StepClock())
    log.usual = Fault(Delivery.UNREACHABLE)
    with pytest.raises(UnavailableError):
        asyncio.run(log.latest(VM))
