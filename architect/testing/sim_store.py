"""A simulated ownership log: slow, sometimes deaf, sometimes dumb (the answer is lost after the effect)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from architect.errors import ConflictError, OutcomeUnknownError, UnavailableError
from architect.migration.ownership_log import check_successor
from architect.model.ids import VmId
from architect.model.ownership import OwnershipRecord
from architect.testing.sim_events import EventKind
from architect.testing.sim_network import SimNetwork
from architect.testing.sim_world import World

ResultT = TypeVar("ResultT")
RecordT = TypeVar("RecordT", OwnershipRecord, OwnershipRecord | None)


class SimService:
    """A party that every host calls; `deaf` loses requests, `dumb` loses answers, `late` takes its time, by the caller's host."""

    def __init__(self, world: World, name: str, network: SimNetwork) -> None:
        self.world = world
        self.name = name
        self.network = network
        self.late: set[str] = set()
        self.is_down = False
        self.deaf: set[str] = set()
        self.dumb: set[str] = set()

    def trouble(self, kind: str, host: str, duration_s: float) -> None:
        """Be deaf, dumb or late to a host for a while."""
        self.world.say(self.name, f"{kind} to {host} for {duration_s:.2f} s")
        troubled = {"deaf": self.deaf, "dumb": self.dumb, "late": self.late}[kind]
        troubled.add(host)
        self.world.loop.call_later(duration_s, troubled.discard, host)

    def hears(self, host: str) -> bool:
        """Whether a request of the host arrives."""
        return not self.is_down and host not in self.deaf and self.network.passes(host, self.name)

    def answers(self, host: str) -> bool:
        """Whether an answer arrives at the host."""
        return host not in self.dumb and self.network.passes(self.name, host)

    async def ask(self, host: str, name: str, effect: Callable[[], ResultT], vm: str = "") -> ResultT:
        """One call from a host."""

        async def perform() -> ResultT:
            if host in self.late:
                await asyncio.sleep(self.world.random.choice([0.5, 4.0, 15.0]))
            if not self.hears(host):
                await asyncio.sleep(self.world.random.choice([0.05, 1.0, 10.0]))
                raise UnavailableError(self.name, "does not answer", "try again")
            result = effect()
            if not self.answers(host):
                await asyncio.sleep(self.world.random.choice([0.05, 1.0, 10.0]))
                raise OutcomeUnknownError(self.name, "the connection ended before the answer", "read back")
            return result

        def run() -> Awaitable[ResultT]:
            return perform()

        return await self.world.call(name, run, latency_s=(0.001, 0.01), place=self.name, vm=vm)


class SimOwnership:
    """The records, as the store has them."""

    def __init__(self, service: SimService) -> None:
        self.service = service
        self.records: dict[VmId, list[OwnershipRecord]] = {}

    def newest(self, vm: VmId) -> OwnershipRecord | None:
        """The truth."""
        return self.records[vm][-1] if self.records.get(vm) else None

    def create(self, record: OwnershipRecord, asker: str = "") -> OwnershipRecord:
        """Create unless it exists; for `asker`, a host."""
        log = self.records.setdefault(record.vm, [])
        if record.term <= len(log):
            return self.shown(EventKind.RECORD_READ, record.vm, record.term, asker, log[record.term - 1])
        try:
            check_successor(record, log[-1] if log else None)
        except ConflictError:
            self.shown(EventKind.RECORD_REFUSED, record.vm, record.term, asker, record)
            raise
        log.append(record)
        self.service.world.say("store", f"record {record.term}: {record.kind.value} {record.host}", record.vm)
        return self.shown(EventKind.RECORD_CREATED, record.vm, record.term, asker, record)

    def read(self, vm: VmId, term: int, asker: str) -> OwnershipRecord | None:
        """The record of a number, for `asker`."""
        log = self.records.get(vm, [])
        return self.shown(EventKind.RECORD_READ, vm, term, asker, log[term - 1] if 0 < term <= len(log) else None)

    def latest(self, vm: VmId, asker: str) -> OwnershipRecord | None:
        """The newest record, for `asker`."""
        newest = self.newest(vm)
        return self.shown(EventKind.RECORD_READ, vm, newest.term if newest is not None else 0, asker, newest)

    def shown(self, kind: EventKind, vm: VmId, term: int, asker: str, record: RecordT) -> RecordT:
        """Note what the store answers, and answer it."""
        world, answered = self.service.world, self.service.answers(asker)
        world.note(kind, "store", vm, term=term, host=asker, record=record, answered=answered)
        return record


class SimOwnershipPort:
    """An `OwnershipLog` as one host reaches it."""

    def __init__(self, ownership: SimOwnership, host: str) -> None:
        self._ownership = ownership
        self.host = host

    async def prepare(self, record: OwnershipRecord) -> None:
        """As the port says: nothing that anybody could see."""

    async def create(self, record: OwnershipRecord) -> OwnershipRecord:
        """As the port says."""
        name = f"store.create {record.term} {record.kind.value} {record.host}"
        return await self._ownership.service.ask(self.host, name, lambda: self._ownership.create(record, self.host), record.vm)

    async def latest(self, vm: VmId) -> OwnershipRecord | None:
        """As the port says."""
        return await self._ownership.service.ask(self.host, "store.latest", lambda: self._ownership.latest(vm, self.host), vm)

    async def read(self, vm: VmId, term: int) -> OwnershipRecord | None:
        """As the port says."""
        name = f"store.read {term}"
        return await self._ownership.service.ask(self.host, name, lambda: self._ownership.read(vm, term, self.host), vm)
