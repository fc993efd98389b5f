"""What every ownership log promises, as cases that run against any of them.

A case is an async function of a new, empty log and of a function that opens another way to the same log (another host's). Run
them all: ``for case in CASES: asyncio.run(case(log, another))``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

import msgspec

from architect.errors import ArchitectError, UsageError
from architect.migration.ownership_log import OwnershipLog, TermConflictError
from architect.model.ids import HostName, VmId
from architect.model.ownership import OwnershipRecord, RecordKind

VM = VmId("vm-0123456789ab")
Case = Callable[[OwnershipLog, Callable[[], OwnershipLog]], Coroutine[None, None, None]]


def record(term: int, writer: str = "w1", kind: RecordKind = RecordKind.RUN, host: str = "aws-1", vm: VmId = VM) -> OwnershipRecord:
    """A record with everything that a case does not care about."""
    return OwnershipRecord(vm, term, kind, HostName(host), writer, "mig-1")


async def an_empty_log_has_no_owner(log: OwnershipLog, another: Callable[[], OwnershipLog]) -> None:
    """No record, no owner."""
    assert await log.latest(VM) is None
    assert await log.read(VM, 1) is None


async def what_is_created_is_read_by_all(log: OwnershipLog, another: Callable[[], OwnershipLog]) -> None:
    """Another host reads what was written."""
    first, second = record(1), record(2, "w2", RecordKind.ABORT, "gcp-1")
    assert await log.create(first) == first
    assert await another().create(second) == second
    assert await another().read(VM, 1) == first
    assert await log.latest(VM) == second
    assert await log.read(VM, 3) is None


async def the_first_writer_of_a_number_wins(log: OwnershipLog, another: Callable[[], OwnershipLog]) -> None:
    """A rival is answered with the record that exists; nothing changes."""
    first, rival = record(1), record(1, "w2", RecordKind.ABORT, "gcp-1")
    await log.create(first)
    assert await another().create(rival) == first
    assert await log.latest(VM) == first


async def creating_again_is_reading_back(log: OwnershipLog, another: Callable[[], OwnershipLog]) -> None:
    """An author whose answer was lost sees its own record, also when others have followed."""
    first = record(1)
    await log.create(first)
    assert await log.create(first) == first
    await log.create(record(2, "w2"))
    assert await log.create(first) == first


async def a_number_out_of_turn_is_refused(log: OwnershipLog, another: Callable[[], OwnershipLog]) -> None:
    """Gaps cannot be written."""
    await _refused(log, record(2), TermConflictError)
    await log.create(record(1))
    await _refused(log, record(3), TermConflictError)
    assert await log.latest(VM) == record(1)


async def nothing_follows_an_end(log: OwnershipLog, another: Callable[[], OwnershipLog]) -> None:
    """END closes the log; reading and repeating still work."""
    end = record(2, "w2", RecordKind.END)
    await log.create(record(1))
    await log.create(end)
    await _refused(another(), record(3, "w3"), TermConflictError)
    assert await another().create(record(2, "w4")) == end
    assert await log.latest(VM) == end


async def numbers_and_names_are_checked(log: OwnershipLog, another: Callable[[], OwnershipLog]) -> None:
    """What can be no record is refused before anything is touched."""
    for term in (0, -1, 10**10):
        await _refused(log, record(term), UsageError)
    for name in ("", "..", "a/b", "../x", "A"):
        await _refused(log, record(1, vm=VmId(name)), UsageError)
    assert await log.latest(VM) is None


async def logs_of_vms_are_apart(log: OwnershipLog, another: Callable[[], OwnershipLog]) -> None:
    """Each VM counts for itself."""
    other = VmId("vm-ba9876543210")
    await log.create(record(1))
    assert await log.latest(other) is None
    assert await log.create(record(1, vm=other)) == record(1, vm=other)


async def of_many_rivals_all_see_one_winner(log: OwnershipLog, another: Callable[[], OwnershipLog]) -> None:
    """Twenty hosts at once for each of five numbers: one winner each, everybody is told the same."""
    for term in range(1, 6):
        rivals = [record(term, f"w{term}x{i}", host=f"host-{i}") for i in range(20)]
        answers = await asyncio.gather(*(another().create(rival) for rival in rivals))
        assert len({answer.writer for answer in answers}) == 1
        assert answers[0] in rivals
        assert await log.read(VM, term) == answers[0]


async def every_field_survives(log: OwnershipLog, another: Callable[[], OwnershipLog]) -> None:
    """A record comes back as it was written, field by field."""
    for term, kind in enumerate(RecordKind, start=1):
        written = record(term, f"w{term}", kind, f"host-{term}")
        await log.create(written)
        read = await another().read(VM, term)
        assert read is not None and msgspec.structs.asdict(read) == msgspec.structs.asdict(written)


async def _refused(log: OwnershipLog, refused: OwnershipRecord, kind: type[ArchitectError]) -> None:
    try:
        await log.create(refused)
    except kind:
        return
    raise AssertionError(f"{refused} was accepted")


CASES: tuple[Case, ...] = (
    an_empty_log_has_no_owner,
    what_is_created_is_read_by_all,
    the_first_writer_of_a_number_wins,
    creating_again_is_reading_back,
    a_number_out_of_turn_is_refused,
    nothing_follows_an_end,
    numbers_and_names_are_checked,
    logs_of_vms_are_apart,
    of_many_rivals_all_see_one_winner,
    every_field_survives,
)
