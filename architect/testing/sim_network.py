"""A network between simulated hosts: real `runtime.rpc` channels over streams with latency, stalls and resets.

Bytes of a connection arrive in order or not at all, as TCP's do. A cut stalls them; when it heals they go on, unless one end has
closed meanwhile. A killed process's connections end, and the other end learns of it once the network carries that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from architect.errors import UnavailableError
from architect.runtime.rpc import Channel, Handler
from architect.testing.sim_world import World
from architect.wire.migration_messages import MigrationMessage

LATENCY_S = (0.0002, 0.001)


class SimNetwork:
    """Which hosts reach each other, and since when not."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._healed: dict[frozenset[str], asyncio.Event] = {}
        self._connections: list[_Connection] = []

    def is_cut(self, a: str, b: str) -> bool:
        """Whether nothing passes between two hosts now."""
        event = self._healed.get(frozenset((a, b)))
        return event is not None and not event.is_set()

    async def wait_passable(self, a: str, b: str) -> None:
        """Until the two hosts reach each other."""
        while self.is_cut(a, b):
            await self._healed[frozenset((a, b))].wait()

    def cut(self, a: str, b: str, duration_s: float, *, resets: bool) -> None:
        """Stop everything between two hosts for a while; with `resets` their connections end."""
        self.world.say("network", f"cut {a} - {b} for {duration_s:.2f} s{', connections reset' if resets else ''}")
        event = self._healed[frozenset((a, b))] = asyncio.Event()
        self.world.loop.call_later(duration_s, event.set)
        if resets:
            for connection in self._connections:
                if connection.hosts == frozenset((a, b)):
                    connection.reset()

    def connect(self, a: str, b: str) -> tuple[_End, _End]:
        """A new connection from `a` to `b`: both ends."""
        connection = _Connection(self, a, b)
        self._connections.append(connection)
        return connection.ends


class _Connection:
    def __init__(self, network: SimNetwork, a: str, b: str) -> None:
        self.hosts = frozenset((a, b))
        self.a, self.b = a, b
        self.network = network
        first, second = _End(self), _End(self)
        first.peer, second.peer = second, first
        self.ends = (first, second)

    def reset(self) -> None:
        for end in self.ends:
            end.closed = True
            if not end.reader.at_eof():
                end.reader.feed_eof()


class _End:
    """One end: a reader, and what a StreamWriter is to a Channel."""

    peer: _End

    def __init__(self, connection: _Connection) -> None:
        self.reader = asyncio.StreamReader()
        self.closed = False
        self._connection = connection
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        connection.network.world.spawn(self._pump())

    def write(self, data: bytes) -> None:
        if not self.closed:
            self._queue.put_nowait(bytes(data))

    async def drain(self) -> None:
        if self.closed:
            raise ConnectionResetError

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._queue.put_nowait(None)
            if not self.reader.at_eof():
                self.reader.feed_eof()

    @property
    def transport(self) -> _End:
        return self

    def abort(self) -> None:
        self.close()

    def is_closing(self) -> bool:
        return self.closed

    async def wait_closed(self) -> None:
        return

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    async def _pump(self) -> None:
        network, connection = self._connection.network, self._connection
        while (data := await self._queue.get()) is not None:
            await asyncio.sleep(network.world.delay_s(*LATENCY_S, place=f"{connection.a}-{connection.b}"))
            await network.wait_passable(connection.a, connection.b)
            if self.peer.closed:
                return
            self.peer.reader.feed_data(data)
        await network.wait_passable(connection.a, connection.b)
        if not self.peer.closed:
            self.peer.closed = True
            self.peer.reader.feed_eof()


def channel_of(end: _End, handler: Handler | None, peer: str) -> Channel:
    """A real channel of the migration protocol over one end."""
    return Channel(end.reader, cast(asyncio.StreamWriter, end), MigrationMessage, handler, peer)


class SimDial:
    """A `DialPort` from one host to another's agent."""

    def __init__(
        self, network: SimNetwork, source: str, target: str, accept: Callable[[_End, str], bool], track: Callable[[_End], None]
    ) -> None:
        self._network = network
        self._source = source
        self._target = target
        self._accept = accept
        self._track = track

    async def dial(self) -> Channel:
        """Connect; hangs while the network is cut."""

        async def effect() -> Channel:
            await self._network.wait_passable(self._source, self._target)
            mine, theirs = self._network.connect(self._source, self._target)
            if not self._accept(theirs, self._source):
                raise UnavailableError(f"host {self._target}", "cannot connect (refused)", "see that it runs and can be reached")
            self._track(mine)
            return channel_of(mine, None, f"host {self._target}")

        return await self._network.world.call(f"dial {self._target}", effect)
