"""A whole control plane on virtual time, with fake hosts and a fake edge, connected by socket pairs in this process."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from architect.clouds import InstanceSource
from architect.control.database import Database, sqlite_url
from architect.control.followers import Follower, Progress
from architect.control.move_vm import MoveWish, migrate_vm
from architect.control.plane import ControlPlane
from architect.control.records import VmRecord
from architect.control.run_vm import RunWish, run_vm
from architect.control.views import MigrationView, VmView, vm_view
from architect.errors import UnavailableError
from architect.model.config import ControlConfig
from architect.model.ids import HostName, VmId
from architect.model.vm_state import VmState
from architect.runtime.rpc import Channel, Handler
from architect.testing.fake_agent import Connect, FakeAgent, FakeWorld
from architect.testing.fake_edge import FakeEdge
from architect.testing.virtual_time import InlineExecutor, LoopClock, run_virtual
from architect.wire.agent_messages import AgentMessage
from architect.wire.edge_messages import EdgeMessage

ResultT = TypeVar("ResultT")


class CountingEntropy:
    """Every id is the next one."""

    def __init__(self) -> None:
        self._count = 0

    def random_bytes(self, count: int) -> bytes:
        """The next number."""
        self._count += 1
        return self._count.to_bytes(count, "big")


@dataclass
class Rig:
    """One test's fabric. `control` is replaced by `restart`."""

    state_dir: Path
    world: FakeWorld
    edge: FakeEdge
    entropy: CountingEntropy = field(default_factory=CountingEntropy)
    control: ControlPlane = field(init=False)
    edge_is_up: bool = True
    instances: InstanceSource | None = None
    _tasks: list[asyncio.Task[Any]] = field(default_factory=list)
    _edge_channels: list[Channel] = field(default_factory=list)
    _database: Database | None = None

    def start(self) -> None:
        """Start the control plane on the database as it is."""
        config = ControlConfig("test", "127.0.0.1", 0, "", str(self.state_dir), "", "edge-1", "127.0.0.1", 0)
        self._database = Database(sqlite_url(self.state_dir), InlineExecutor())
        self.control = ControlPlane(config, self._database, self._dial_edge, LoopClock(), self.entropy, self.instances)
        self._tasks.append(asyncio.create_task(self.control.run()))

    async def kill(self) -> None:
        """The control plane dies at once."""
        for agent in self.world.agents.values():
            await agent.disconnect()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        if self._database is not None:
            self._database.close()

    async def restart(self) -> None:
        """It dies, and another one takes over with all agents."""
        await self.kill()
        self.start()
        for agent in self.world.agents.values():
            await self.connect(agent)

    async def host(self, name: str, memory_mib: int = 2048) -> FakeAgent:
        """A new host, connected."""
        agent = self.world.add_host(name, memory_mib << 20)
        await self.connect(agent)
        return agent

    async def connect(self, agent: FakeAgent) -> None:
        """The agent dials the control plane."""
        await agent.connect(self.connection_of(agent), 1.0)
        await self.until(lambda: self.control.fabric.fleet.report(agent.name) is not None)

    async def disconnect(self, name: str) -> FakeAgent:
        """The host's agent is not connected any more; its VMs run on."""
        agent = self.world.agents[HostName(name)]
        await agent.disconnect()
        await self.until(lambda: not self.control.fabric.fleet.is_here(agent.name))
        return agent

    async def run(self, name: str, **wish: Any) -> VmView:
        """Run a VM to the end of its creation."""
        _, follower = await run_vm(self.control.fabric, RunWish("oci:/image", name=name, **wish))
        view = await ended(follower)
        assert isinstance(view, VmView)
        return view

    async def migrate(self, vm: str, to: str) -> MigrationView:
        """Move a VM to the end of the move."""
        _, follower = await migrate_vm(self.control.fabric, MoveWish(vm, to))
        view = await ended(follower)
        assert isinstance(view, MigrationView)
        return view

    def vm(self, name: str) -> VmRecord:
        """The VM's record."""
        return self.control.fabric.book.find_vm(name)

    def view(self, name: str) -> VmView:
        """The VM as users see it."""
        return vm_view(self.control.fabric, self.vm(name))

    def kinds(self) -> list[str]:
        """The kinds of all events so far."""
        return [event.kind.value for event in self.control.fabric.book.events]

    async def until(self, condition: Callable[[], bool], limit_s: float = 120.0) -> None:
        """Let (virtual) time pass until it is so."""
        async with asyncio.timeout(limit_s):
            while not condition():  # noqa: ASYNC110 - virtual time, and any condition
                await asyncio.sleep(0.05)

    async def until_state(self, name: str, state: VmState) -> None:
        """Let time pass until users see the VM in that state."""
        await self.until(lambda: self.view(name).state is state)

    def connection_of(self, agent: FakeAgent) -> Connect:
        """How the agent dials the control plane."""

        async def connect(handler: Handler) -> Channel:
            (near, far) = await stream_pair()
            self._tasks.append(asyncio.create_task(self.control.desk.serve(*far, f"agent:{agent.name}")))
            return Channel(*near, AgentMessage, handler, "control plane")

        return connect

    async def _dial_edge(self) -> Channel:
        if not self.edge_is_up:
            raise UnavailableError("edge edge-1", "is down", "wait")
        (near, far) = await stream_pair()
        server = Channel(*far, EdgeMessage, self.edge.handle, "control")
        self._tasks.append(asyncio.create_task(server.run()))
        self._edge_channels.append(server)
        return Channel(*near, EdgeMessage, None, "edge edge-1")

    def cut_edge(self) -> None:
        """The edge goes away."""
        self.edge_is_up = False
        for channel in self._edge_channels:
            channel.close()


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def stream_pair() -> tuple[Streams, Streams]:
    """Two connected streams."""
    near, far = socket.socketpair()
    return await asyncio.open_connection(sock=near), await asyncio.open_connection(sock=far)


async def ended(follower: Follower) -> Any:
    """What the work ended with; raises its error."""
    async for item in follower.follow():
        if not isinstance(item, Progress):
            return item
    raise AssertionError("no end")


@contextlib.asynccontextmanager
async def rig(state_dir: Path, *hosts: str, memory_mib: int = 2048, instances: InstanceSource | None = None) -> AsyncIterator[Rig]:
    """A running control plane with these hosts."""
    async with FakeWorld() as world:
        one = Rig(state_dir, world, FakeEdge(), instances=instances)
        one.start()
        try:
            for name in hosts:
                await one.host(name, memory_mib)
            await one.until(lambda: one.control.fabric.edge.is_connected)
            yield one
        finally:
            await one.kill()


def simulate(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Run a test on virtual time, for up to an hour of it."""

    async def bounded() -> ResultT:
        async with asyncio.timeout(3600):
            return await work

    return run_virtual(bounded())


def id_of(one: Rig, name: str) -> VmId:
    """The VM's id."""
    return one.vm(name).id
