"""The book: all records in memory, each change committed to the database before anybody sees it.

Readers use the mappings directly and never wait. Writers open a `change`; changes run one after the other, so what a change reads
stays true until it is committed::

    async with book.change() as change:
        change.put(record)
        change.say(EventKind.VM_RUNNING, vm=record)

If the body raises, nothing has changed. Only `EVENTS_KEPT` events and `MOVES_KEPT` ended moves are kept. The report of a move that
has ended, most of what there is of it, is in the database only: `read_moves` has it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Iterable
from typing import Any

from architect.control.bell import Bell
from architect.control.cross_index import CrossIndex
from architect.control.database import Counter, Database, Deletion, EventsUpTo, Write
from architect.control.records import EventKind, EventRecord, HostRecord, MigrationRecord, VmRecord
from architect.errors import NotFoundError
from architect.model.ids import HostName, MigrationId, VmId
from architect.runtime.clock import Clock

EVENTS_KEPT = 10_000
EVENTS_PRUNED_EVERY = 256
MOVES_KEPT = 1_000


class Change:
    """What one change will write. `put` takes VMs, hosts and moves; the last one for a key wins."""

    def __init__(self, now_s: float, next_sequence: int) -> None:
        self.now_s = now_s
        self._next_sequence = next_sequence
        self.writes: list[Write] = []

    def put(self, record: VmRecord | HostRecord | MigrationRecord) -> None:
        """Write the record, new or over its older self."""
        self.writes.append(record)

    def delete(self, record: VmRecord | HostRecord | MigrationRecord) -> None:
        """Forget the record."""
        key = record.name if isinstance(record, HostRecord) else record.id
        self.writes.append(Deletion(type(record), key))

    def count(self, name: str, value: int) -> None:
        """Set a counter."""
        self.writes.append(Counter(name, value))

    def say(
        self, kind: EventKind, message: str = "", *, vm: VmRecord | None = None, host: str = "", move: MigrationRecord | None = None
    ) -> None:
        """Write an event; names of VM, host and move are taken from the records."""
        name, vm_id = (vm.request.name, vm.id) if vm is not None else (move.vm_name, move.vm) if move is not None else ("", "")
        self.writes.append(
            EventRecord(
                sequence=self._next_sequence,
                time_s=self.now_s,
                kind=kind,
                vm=name,
                vm_id=vm_id,
                host=host or (vm.host if vm is not None else ""),
                migration=move.id if move is not None else "",
                message=message,
            )
        )
        self._next_sequence += 1


class Book:
    """All records. `bell` rings after each change."""

    def __init__(self, database: Database, clock: Clock, bell: Bell) -> None:
        self._database = database
        self._clock = clock
        self._lock = asyncio.Lock()
        self.bell = bell
        self.vms: dict[VmId, VmRecord] = {record.id: record for record in database.read_all(VmRecord)}
        self.hosts: dict[HostName, HostRecord] = {record.name: record for record in database.read_all(HostRecord)}
        moves = sorted((record.brief() for record in database.read_all(MigrationRecord)), key=lambda move: move.started_at_s)
        self.moves: dict[MigrationId, MigrationRecord] = {record.id: record for record in moves}
        self._index = CrossIndex(self.vms.values(), self.moves.values())
        self.counters: dict[str, int] = database.read_counters()
        events = sorted(database.read_all(EventRecord), key=lambda event: event.sequence)
        self.events: deque[EventRecord] = deque(events, EVENTS_KEPT)
        self._next_sequence = events[-1].sequence + 1 if events else 1

    @contextlib.asynccontextmanager
    async def change(self) -> AsyncIterator[Change]:
        """Collect a change; it is committed and then visible when the block ends without an error.

        Raises:
            HostError: the database refused; nothing has changed.
        """
        async with self._lock:
            change = Change(self._clock.wall_s(), self._next_sequence)
            yield change
            if change.writes:
                writes = change.writes + self._pruning(change.writes)
                committing = asyncio.ensure_future(self._database.commit(writes))
                try:
                    await asyncio.shield(committing)
                except asyncio.CancelledError:
                    await asyncio.wait([committing])
                    self._show(writes, committing)
                    raise
                self._show(writes, committing)

    def find_vm(self, name_or_id: str) -> VmRecord:
        """The VM that a user means.

        Raises:
            NotFoundError: there is none of that name or id.
        """
        record = self.vms.get(VmId(name_or_id))
        if record is None or record.is_tombstone:
            record = self._index.vm_named(name_or_id)
        if record is not None:
            return record
        raise NotFoundError(f"vm {name_or_id}", "does not exist", "see `architect ps` for those that do")

    def is_named(self, name: str) -> bool:
        """Whether a VM has that name."""
        return self._index.vm_named(name) is not None

    def find_host(self, name: str) -> HostRecord:
        """The host of that name.

        Raises:
            NotFoundError: there is none.
        """
        try:
            return self.hosts[HostName(name)]
        except KeyError:
            raise NotFoundError(f"host {name}", "does not exist", "see `architect host ls` for those that do") from None

    async def read_moves(self, wanted: Iterable[MigrationId]) -> list[MigrationRecord]:
        """These moves with their reports, in the order asked; those that are not known are left out.

        Raises:
            HostError: the database refused.
        """
        found = [move for identity in wanted if (move := self.moves.get(identity)) is not None]
        ended = [move.id for move in found if move.state.is_terminal]
        whole = {move.id: move for move in await self._database.read_moves(ended)} if ended else {}
        return [whole.get(move.id, move) for move in found]

    def move_of(self, vm: VmId) -> MigrationRecord | None:
        """The VM's move that is under way, if there is one."""
        return self._index.move_of(vm)

    def open_moves(self) -> list[MigrationRecord]:
        """All moves under way."""
        return list(self._index.open_moves.values())

    def moves_at(self, host: HostName) -> list[MigrationRecord]:
        """The moves under way from the host or to it."""
        return self._index.moves_at(host)

    def vms_on(self, host: HostName) -> list[VmRecord]:
        """The VMs whose records name the host, removed ones and those that are over among them."""
        return self._index.vms_on(host)

    def living_on(self, host: HostName) -> list[VmRecord]:
        """Of them, those that are neither removed nor over."""
        return [vm for vm in self.vms_on(host) if not vm.is_tombstone and not vm.state.is_terminal]

    def _pruning(self, writes: list[Write]) -> list[Write]:
        pruning: list[Write] = []
        last = max((write.sequence for write in writes if isinstance(write, EventRecord)), default=0)
        if last > EVENTS_KEPT and last // EVENTS_PRUNED_EVERY != (self._next_sequence - 1) // EVENTS_PRUNED_EVERY:
            pruning.append(EventsUpTo(last - EVENTS_KEPT))
        if len(self.moves) > MOVES_KEPT:
            ended = [move for move in self.moves.values() if move.state.is_terminal]
            pruning += [Deletion(MigrationRecord, move.id) for move in ended[: len(self.moves) - MOVES_KEPT]]
        return pruning

    def _show(self, writes: list[Write], committing: asyncio.Future[None]) -> None:
        if committing.cancelled() or committing.exception() is not None:
            return
        for write in writes:
            match write:
                case EventRecord():
                    self.events.append(write)
                    self._next_sequence = write.sequence + 1
                case Deletion(kind, key):
                    self._show_deleted(kind, key)
                case Counter(name, value):
                    self.counters[name] = value
                case EventsUpTo():
                    pass
                case HostRecord():
                    self.hosts[write.name] = write
                case VmRecord():
                    self._index.put_vm(self.vms.get(write.id), write)
                    self.vms[write.id] = write
                case MigrationRecord():
                    self._index.put_move(self.moves.get(write.id), write)
                    self.moves[write.id] = write.brief()
        self.bell.ring()

    def _show_deleted(self, kind: type, key: Any) -> None:
        if kind is VmRecord:
            self._index.put_vm(self.vms.pop(key, None), None)
        elif kind is MigrationRecord:
            self._index.put_move(self.moves.pop(key, None), None)
        else:
            self.hosts.pop(key, None)
