"""The real control plane in a simulation: a process that can be killed and frozen, over a database that outlives it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from architect.control.database import Counter, Database, Deletion, EventsUpTo, Write
from architect.control.evacuate import set_draining
from architect.control.move_vm import MoveWish, migrate_vm
from architect.control.plane import ControlPlane
from architect.control.records import EventRecord, HostRecord, MigrationRecord, VmRecord
from architect.errors import ArchitectError, UnavailableError
from architect.model.config import ControlConfig
from architect.model.ids import MigrationId
from architect.runtime.rpc import Call, Channel, Handler
from architect.testing.sim_process import SimProcess
from architect.testing.virtual_clock import SeededEntropy, VirtualClock
from architect.wire.agent_messages import AgentMessage
from architect.wire.edge_messages import EdgeMessage

if TYPE_CHECKING:
    from architect.testing.sim_edge import SimEdge
    from architect.testing.sim_host import SimHost
    from architect.testing.sim_network import SimEnd, SimNetwork
    from architect.testing.sim_world import World

RecordT = TypeVar("RecordT", VmRecord, HostRecord, MigrationRecord, EventRecord)
DIAL_TIMEOUT_S = 5.0
RESTART_S = (0.2, 3.0)
COMMIT_S = (0.0005, 0.003)
CONFIG = ControlConfig("sim", "198.18.0.2", 7400, "", "", "", "edge", "198.18.0.1", 7401)


class SimDatabase(Database):
    """The control plane's records in memory. A commit takes its time, and happens even if the process dies meanwhile."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._tables: dict[Any, dict[Any, Any]] = {VmRecord: {}, HostRecord: {}, MigrationRecord: {}, EventRecord: {}}
        self._counters: dict[str, int] = {}

    async def commit(self, writes: Sequence[Write]) -> None:
        """As the real one."""

        async def effect() -> None:
            for write in writes:
                self._write(write)

        await self._world.call("commit", effect, COMMIT_S, place="control")

    def read_all(self, kind: type[RecordT]) -> list[RecordT]:
        """As the real one."""
        return list(self._tables[kind].values())

    async def read_moves(self, wanted: Collection[MigrationId]) -> list[MigrationRecord]:
        """As the real one."""
        return [self._tables[MigrationRecord][identity] for identity in wanted]

    def read_counters(self) -> dict[str, int]:
        """As the real one."""
        return dict(self._counters)

    def _write(self, write: Write) -> None:
        match write:
            case Deletion(kind, key):
                self._tables[kind].pop(key, None)
            case Counter(name, value):
                self._counters[name] = value
            case EventsUpTo(sequence):
                events = self._tables[EventRecord]
                for old in [one for one in events if one <= sequence]:
                    del events[old]
            case EventRecord():
                self._tables[EventRecord][write.sequence] = write
                about = f" on {write.host}" if write.host else ""
                self._world.say("control", f"event {write.kind.value}{about}: {write.message}", write.vm_id)
            case HostRecord():
                self._tables[HostRecord][write.name] = write
            case VmRecord() | MigrationRecord():
                self._tables[type(write)][write.id] = write


class SimControl:
    """The control plane, from one start of its process to the next."""

    plane: ControlPlane

    def __init__(self, world: World, network: SimNetwork, edge: SimEdge) -> None:
        self.world = world
        self.network = network
        self.edge = edge
        self.database = SimDatabase(world)
        self.process = SimProcess(world, "control", "control")
        self._starts = 0
        self._ends: list[SimEnd] = []
        self._accepted: asyncio.Queue[tuple[SimEnd, str]] = asyncio.Queue()

    def start(self) -> None:
        """Start the process."""
        self._starts += 1
        world = self.world
        world.say("control", "starts")
        self.process = SimProcess(world, "control", "control", lambda: self.crash("at a scheduling point"))
        self._ends, self._accepted = [], asyncio.Queue()
        self.process.start(self._run)

    def crash(self, why: str) -> None:
        """`kill -9`, then its supervisor's restart."""
        if not self.process.is_alive:
            return
        self.process.kill(why)
        for end in self._ends:
            end.close()
        self.world.loop.call_later(self.world.random.uniform(*RESTART_S), self.start)

    def dial_from(self, host: SimHost) -> Callable[[Handler], Awaitable[Channel]]:
        """How an agent reaches the control plane."""

        async def dial(handler: Handler) -> Channel:
            end = await self._connect(host.name, "control", self._accept)
            if host.agent is not None:
                host.agent.track(end)
            return Channel(end.reader, cast(asyncio.StreamWriter, end), AgentMessage, handler, "control plane")

        return dial

    def move(self, vm: str, to: str, mode: Any) -> None:
        """A user asks for a move."""

        async def ask() -> None:
            try:
                await migrate_vm(self.plane.fabric, MoveWish(vm, to, mode))
            except ArchitectError as error:
                self.world.say("control", f"refuses to move {vm} to {to}: {error}", vm)

        self._use(ask)

    def drain(self, host: str) -> None:
        """A user drains a host."""

        async def ask() -> None:
            try:
                await set_draining(self.plane.fabric, host, draining=True)
            except ArchitectError as error:
                self.world.say("control", f"refuses to drain {host}: {error}")

        self._use(ask)

    def _use(self, ask: Callable[[], Awaitable[None]]) -> None:
        if self.process.is_alive:
            self.process.run(ask)
        else:
            self.world.say("control", "is not there for its user")

    async def _run(self) -> None:
        clock = VirtualClock(self.world.loop)
        entropy = SeededEntropy((self.world.seed, "control", self._starts))
        self.plane = ControlPlane(CONFIG, self.database, self._dial_edge, clock, entropy)
        async with asyncio.TaskGroup() as group:
            group.create_task(self.plane.run())
            while True:
                end, name = await self._accepted.get()
                group.create_task(self._serve(end, name))

    async def _serve(self, end: SimEnd, name: str) -> None:
        try:
            await self.plane.desk.serve(end.reader, cast(asyncio.StreamWriter, end), f"agent:{name}")
        except ArchitectError as error:
            self.world.say("control", f"connection of {name}: {error}")

    def _accept(self, end: SimEnd, source: str) -> bool:
        if not self.process.is_alive:
            return False
        self._ends = [old for old in self._ends if not old.closed]
        self._ends.append(end)
        self._accepted.put_nowait((end, source))
        return True

    async def _dial_edge(self) -> Channel:
        end = await self._connect("control", "edge", self._accept_at_edge)
        self._ends.append(end)
        return Channel(end.reader, cast(asyncio.StreamWriter, end), EdgeMessage, None, "edge")

    def _accept_at_edge(self, end: SimEnd, _source: str) -> bool:
        if self.edge.service.is_down:
            return False
        self.edge.connections.append(end)
        self.world.spawn(self._serve_edge(end))
        return True

    async def _serve_edge(self, end: SimEnd) -> None:
        async def handle(message: EdgeMessage, _body: bytes, _call: Call | None) -> EdgeMessage | None:
            return self.edge.server.answer(message, "control")

        await Channel(end.reader, cast(asyncio.StreamWriter, end), EdgeMessage, handle, "control").run()

    async def _connect(self, a: str, b: str, accept: Callable[[SimEnd, str], bool]) -> SimEnd:
        async def effect() -> SimEnd:
            await self.network.wait_passable(a, b)
            mine, theirs = self.network.connect(a, b)
            if not accept(theirs, a):
                raise UnavailableError(b, "cannot connect (refused)", "see that it runs and can be reached")
            return mine

        try:
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                return await self.world.call(f"dial {b}", effect, stops=True)
        except TimeoutError as error:
            raise UnavailableError(b, "cannot connect (no answer in time)", "see that it runs and can be reached") from error
