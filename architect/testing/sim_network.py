"""A network between simulated parties: real `runtime.rpc` channels over streams with latency, stalls and resets, links with a rate.

Parties are hosts, `control`, `edge` and `store`. Bytes of a connection arrive in order or not at all, as TCP's do. A cut, which may
be in one direction only, stalls them; when it heals they go on, unless one end has closed meanwhile. A killed process's connections
end, and the other end learns of it once the network carries that. What carries memory and disks (`transfer`) shares its host's
link with everything else that leaves and reaches the host. A party that is gone, or frozen, neither sends nor takes.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, cast

from architect.errors import UnavailableError
from architect.runtime.rpc import Channel, Handler
from architect.testing.sim_world import World
from architect.wire.migration_messages import MigrationMessage

LATENCY_S = (0.0002, 0.001)
LINK_BYTES_PER_S = 20e6
IN_ORDER_S = 1e-7


class SimNetwork:
    """Which parties reach each other, how fast their links are, and how long those are busy."""

    def __init__(self, world: World, link_bytes_per_s: float = LINK_BYTES_PER_S) -> None:
        self.world = world
        self.link_bytes_per_s = link_bytes_per_s
        self.moved_bytes = 0
        self._cuts: Counter[tuple[str, str]] = Counter()
        self._gone: set[str] = set()
        self._changed = asyncio.Event()
        self._busy_until_s: dict[str, float] = {}
        self._connections: list[_Connection] = []

    def passes(self, a: str, b: str) -> bool:
        """Whether what `a` sends reaches `b` now."""
        if self._cuts[a, b] or a in self._gone or b in self._gone:
            return False
        return not (self.world.is_frozen(a) or self.world.is_frozen(b))

    def is_cut(self, a: str, b: str) -> bool:
        """Whether the two do not reach each other now, at least in one direction."""
        return not (self.passes(a, b) and self.passes(b, a))

    async def wait_passes(self, a: str, b: str) -> None:
        """Until what `a` sends reaches `b`."""
        while not self.passes(a, b):
            if self.world.is_frozen(a) or self.world.is_frozen(b):
                await self.world.wait_thawed(a if self.world.is_frozen(a) else b)
            else:
                await self._changed.wait()

    async def wait_passable(self, a: str, b: str) -> None:
        """Until the two reach each other."""
        while self.is_cut(a, b):
            await self.wait_passes(a, b)
            await self.wait_passes(b, a)

    async def transfer(self, a: str, b: str, size_bytes: int) -> None:
        """Carry bytes from `a` to `b`, at the rate of the slower link, after what waits there already."""
        loop, slowness = self.world.loop, self.world.slowness
        duration_s = size_bytes / self.link_bytes_per_s * max(slowness.get(a, 1.0), slowness.get(b, 1.0))
        start_s = max(loop.now_s, self._busy_until_s.get(a, 0.0), self._busy_until_s.get(b, 0.0))
        self._busy_until_s[a] = self._busy_until_s[b] = start_s + duration_s
        self.moved_bytes += size_bytes
        await asyncio.sleep(start_s + duration_s - loop.now_s)
        if self.is_cut(a, b):
            await self.wait_passable(a, b)

    def cut(self, a: str, b: str, duration_s: float, *, resets: bool = False, is_one_way: bool = False) -> None:
        """Stop what `a` sends to `b` (and `b` to `a`) for a while; with `resets` their connections end."""
        arrow = "->" if is_one_way else "-"
        self.world.say("network", f"cut {a} {arrow} {b} for {duration_s:.2f} s{', connections reset' if resets else ''}")
        pairs = [(a, b)] if is_one_way else [(a, b), (b, a)]
        for pair in pairs:
            self._cuts[pair] += 1
        self.world.loop.call_later(duration_s, self._heal, pairs)
        if resets:
            for connection in self._connections:
                if {connection.a, connection.b} == {a, b}:
                    connection.reset()

    def lose(self, party: str) -> None:
        """The party is gone for ever, without a goodbye."""
        self._gone.add(party)

    def connect(self, a: str, b: str) -> tuple[SimEnd, SimEnd]:
        """A new connection from `a` to `b`: both ends."""
        self._connections = [old for old in self._connections if not old.is_closed]
        connection = _Connection(self, a, b)
        self._connections.append(connection)
        return connection.ends

    def _heal(self, pairs: list[tuple[str, str]]) -> None:
        for pair in pairs:
            self._cuts[pair] -= 1
        self._changed.set()
        self._changed = asyncio.Event()


class _Connection:
    def __init__(self, network: SimNetwork, a: str, b: str) -> None:
        self.a, self.b = a, b
        first, second = SimEnd(network, a, b), SimEnd(network, b, a)
        first.peer, second.peer = second, first
        self.ends = (first, second)

    @property
    def is_closed(self) -> bool:
        return all(end.closed for end in self.ends)

    def reset(self) -> None:
        for end in self.ends:
            end.end()


class SimEnd:
    """One end: a reader, and what a StreamWriter is to a Channel."""

    peer: SimEnd

    def __init__(self, network: SimNetwork, here: str, there: str) -> None:
        self.reader = asyncio.StreamReader()
        self.closed = False
        self._network = network
        self._here = here
        self._there = there
        self._due_s = 0.0
        self._stalled: deque[bytes | None] = deque()

    def write(self, data: bytes) -> None:
        """As a StreamWriter's."""
        if not self.closed:
            self._send(bytes(data))

    async def drain(self) -> None:
        """As a StreamWriter's."""
        if self.closed:
            raise ConnectionResetError

    def close(self) -> None:
        """As a StreamWriter's."""
        if not self.closed:
            self.end()
            self._send(None)

    def end(self) -> None:
        """Nothing comes and nothing goes any more."""
        self.closed = True
        if not self.reader.at_eof():
            self.reader.feed_eof()

    @property
    def transport(self) -> SimEnd:
        """As a StreamWriter's."""
        return self

    def abort(self) -> None:
        """As a transport's."""
        self.close()

    def is_closing(self) -> bool:
        """As a StreamWriter's."""
        return self.closed

    async def wait_closed(self) -> None:
        """As a StreamWriter's."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """As a StreamWriter's."""
        return default

    def _send(self, data: bytes | None) -> None:
        world = self._network.world
        slowness = max(world.slowness.get(self._here, 1.0), world.slowness.get(self._there, 1.0))
        latency_s = world.random.uniform(*LATENCY_S) * slowness
        # Timers of equal times fire in any order.
        self._due_s = max(self._due_s + IN_ORDER_S, world.loop.now_s + latency_s)
        world.loop.call_at(self._due_s, self._arrive, data)

    def _arrive(self, data: bytes | None) -> None:
        if self._stalled:
            self._stalled.append(data)
        elif self._network.passes(self._here, self._there):
            self._deliver(data)
        else:
            self._stalled.append(data)
            self._network.world.spawn(self._deliver_later())

    async def _deliver_later(self) -> None:
        await self._network.wait_passes(self._here, self._there)
        while self._stalled:
            self._deliver(self._stalled.popleft())

    def _deliver(self, data: bytes | None) -> None:
        if self.peer.closed:
            return
        if data is None:
            self.peer.end()
        else:
            self.peer.reader.feed_data(data)


def channel_of(end: SimEnd, handler: Handler | None, peer: str) -> Channel:
    """A real channel of the migration protocol over one end."""
    return Channel(end.reader, cast(asyncio.StreamWriter, end), MigrationMessage, handler, peer)


class SimDial:
    """A `DialPort` from one host to another's agent."""

    def __init__(
        self, network: SimNetwork, source: str, target: str, accept: Callable[[SimEnd, str], bool], track: Callable[[SimEnd], None]
    ) -> None:
        self._network = network
        self._source = source
        self._target = target
        self._accept = accept
        self._track = track

    async def dial(self) -> Channel:
        """Connect; hangs while the network is cut."""
        return channel_of(await self.connect(), None, f"host {self._target}")

    async def connect(self) -> SimEnd:
        """Our end of a new connection."""

        async def effect() -> SimEnd:
            await self._network.wait_passable(self._source, self._target)
            mine, theirs = self._network.connect(self._source, self._target)
            if not self._accept(theirs, self._source):
                raise UnavailableError(f"host {self._target}", "cannot connect (refused)", "see that it runs and can be reached")
            self._track(mine)
            return mine

        return await self._network.world.call(f"dial {self._target}", effect)
