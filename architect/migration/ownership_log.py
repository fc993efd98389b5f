"""The ownership log as a port: who may run a VM, decided by whoever writes the next numbered record first (DESIGN §4).

A VM's log holds records 1, 2, 3, … without gaps; a record, once it exists, never changes and never goes. `create` is the only
write. Its answer is the record that *exists* for the number, so both rivals learn the same thing and each sees by `writer`
whether it was its own. An author whose answer was lost asks again with the same record, or reads back; it must not believe that it
lost, nor that it won, before it has seen the record: `create_until_known` does that.

Adapters: `ownership_directory.DirectoryOwnershipLog`; in tests `testing.fake_ownership.FakeOwnershipLog`. Both pass
`testing.ownership_conformance`. The page `docs/protocols/ownership.md` describes the format and the argument.
"""

from __future__ import annotations

from typing import Protocol

from architect.errors import ConflictError, OutcomeUnknownError, UnavailableError, UsageError
from architect.model.ids import VmId
from architect.model.ownership import OwnershipRecord, RecordKind
from architect.runtime.clock import Clock

TERM_MAX = 10**9


class TermConflictError(ConflictError):
    """A record whose number is not the next one, or that follows the END of its log. Nothing was written."""

    code = "term-conflict"

    def __init__(self, record: OwnershipRecord, cause: str) -> None:
        super().__init__(f"ownership record {record.term} of {record.vm}", cause, "read the latest record before writing another")
        self.record = record


class OwnershipLog(Protocol):
    """Where ownership records are kept. Safe to use from several tasks and several processes at once."""

    async def prepare(self, record: OwnershipRecord) -> None:
        """Do what can be done of `create(record)` before it is known that it shall be, so that it takes less time then.

        Decides nothing and nobody can see it; what fails is not told, because `create` does it then.
        """
        ...

    async def create(self, record: OwnershipRecord) -> OwnershipRecord:
        """The record that exists for `record.term`, which is `record` itself if nobody else had written one. Durable on return.

        Idempotent for equal `writer`. After a cancellation the outcome is unknown, as after OutcomeUnknownError.

        Raises:
            TermConflictError: the number is not the next one, or the log has ended.
            OutcomeUnknownError: the record may or may not exist: read back.
            UnavailableError, HostError, CapacityError: it was not written.
        """
        ...

    async def latest(self, vm: VmId) -> OwnershipRecord | None:
        """The record with the highest number, whose host owns the VM; None for a VM that nobody has ever owned.

        Raises:
            UnavailableError: the log does not answer.
            HostError: the log is damaged.
        """
        ...

    async def read(self, vm: VmId, term: int) -> OwnershipRecord | None:
        """The record of a number, or None while there is none.

        Raises:
            UnavailableError: the log does not answer.
            HostError: the log is damaged.
        """
        ...


def check_term(term: int, what: str) -> int:
    """`term`, if it can be one.

    Raises:
        UsageError: it cannot.
    """
    if not 1 <= term <= TERM_MAX:
        raise UsageError(f"{what} {term}", "out of bounds", f"terms are 1 to {TERM_MAX}")
    return term


def check_successor(record: OwnershipRecord, latest: OwnershipRecord | None) -> None:
    """Check that `record` may follow `latest`. Two rivals for one number both pass; the adapter's create-only write decides.

    Raises:
        TermConflictError: it may not.
    """
    next_term = latest.term + 1 if latest else 1
    if latest is not None and latest.kind is RecordKind.END:
        raise TermConflictError(record, f"the log ended with record {latest.term}")
    if record.term != next_term:
        raise TermConflictError(record, f"the next number is {next_term}")


async def create_until_known(log: OwnershipLog, record: OwnershipRecord, clock: Clock, deadline_s: float) -> OwnershipRecord:
    """`log.create` repeated until the record that exists for the number has been seen, whoever wrote it.

    Creating again is reading back: an existing record is answered, ours or another's.

    Raises:
        OutcomeUnknownError: still unknown after `deadline_s`. Whoever depends on the answer must stay as it is: a paused source
            paused, a target that has not started not started.
        TermConflictError: the number is not the next one.
    """
    end_s = clock.monotonic_s() + deadline_s
    pause_s = 0.005
    while True:
        try:
            return await log.create(record)
        except UnavailableError as error:
            if clock.monotonic_s() + pause_s >= end_s:
                raise OutcomeUnknownError(
                    f"ownership record {record.term} of {record.vm}",
                    f"the log gave no answer within {deadline_s:.1f} s: {error.cause}",
                    "read the record back when the log answers again",
                ) from error
        await clock.sleep(pause_s)
        pause_s = min(pause_s * 2, 0.5)
