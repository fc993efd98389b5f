"""An ownership log in memory whose answers can be late or lost, for tests and the simulator.

All hosts of a simulated fleet share one `OwnershipTable`; each has its own `FakeOwnershipLog`, with its own way to it and that
way's faults. A call takes the next planned `Fault`, or `usual` when none is planned. Nothing moves but on the given clock.
"""

from __future__ import annotations

from collections import deque
from enum import Enum

import msgspec

from architect.errors import OutcomeUnknownError, UnavailableError
from architect.migration.ownership_log import check_successor, check_term
from architect.model.ids import VmId, check_name
from architect.model.ownership import OwnershipRecord
from architect.runtime.clock import Clock


class Delivery(Enum):
    """What becomes of a call."""

    ANSWERED = "answered"
    REQUEST_LOST = "request lost"  # not done, and the caller cannot know
    ANSWER_LOST = "answer lost"  # done, and the caller cannot know
    UNREACHABLE = "unreachable"  # not done, and the caller knows


class Fault(msgspec.Struct, frozen=True):
    """How one call goes: it takes effect `before_s` after it was made, its answer comes `after_s` after that."""

    delivery: Delivery = Delivery.ANSWERED
    before_s: float = 0.0
    after_s: float = 0.0


class OwnershipTable:
    """The records, by VM and term."""

    def __init__(self) -> None:
        self.records: dict[VmId, list[OwnershipRecord]] = {}

    def create(self, record: OwnershipRecord) -> OwnershipRecord:
        """See `OwnershipLog.create`."""
        log = self.records.setdefault(record.vm, [])
        if record.term <= len(log):
            return log[record.term - 1]
        check_successor(record, log[-1] if log else None)
        log.append(record)
        return record


class FakeOwnershipLog:
    """One host's view of a table."""

    def __init__(self, table: OwnershipTable, clock: Clock) -> None:
        self.table = table
        self.planned: deque[Fault] = deque()
        self.usual = Fault()
        self._clock = clock

    async def prepare(self, record: OwnershipRecord) -> None:
        """As the port says: here nothing takes time."""

    async def create(self, record: OwnershipRecord) -> OwnershipRecord:
        """See `OwnershipLog.create`."""
        check_name(record.vm, "VM")
        check_term(record.term, "ownership term")
        fault = await self._request(f"ownership record {record.term} of {record.vm}")
        answer = self.table.create(record)
        await self._answer(fault, f"ownership record {record.term} of {record.vm}")
        return answer

    async def latest(self, vm: VmId) -> OwnershipRecord | None:
        """See `OwnershipLog.latest`."""
        check_name(vm, "VM")
        fault = await self._request(f"ownership log of {vm}")
        log = self.table.records.get(vm)
        answer = log[-1] if log else None
        await self._answer(fault, f"ownership log of {vm}")
        return answer

    async def read(self, vm: VmId, term: int) -> OwnershipRecord | None:
        """See `OwnershipLog.read`."""
        check_name(vm, "VM")
        check_term(term, "ownership term")
        fault = await self._request(f"ownership log of {vm}")
        log = self.table.records.get(vm, [])
        answer = log[term - 1] if term <= len(log) else None
        await self._answer(fault, f"ownership log of {vm}")
        return answer

    async def _request(self, thing: str) -> Fault:
        fault = self.planned.popleft() if self.planned else self.usual
        if fault.before_s:
            await self._clock.sleep(fault.before_s)
        if fault.delivery is Delivery.UNREACHABLE:
            raise UnavailableError(thing, "the log cannot be reached", "try again later")
        if fault.delivery is Delivery.REQUEST_LOST:
            raise OutcomeUnknownError(thing, "no answer was seen", "read it back")
        return fault

    async def _answer(self, fault: Fault, thing: str) -> None:
        if fault.after_s:
            await self._clock.sleep(fault.after_s)
        if fault.delivery is Delivery.ANSWER_LOST:
            raise OutcomeUnknownError(thing, "no answer was seen", "read it back")
