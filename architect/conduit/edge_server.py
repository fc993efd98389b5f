"""EdgeServer: answers the requests of `wire.edge_messages`, one connection a client.

Names come from the client's certificate: `control` may do all, `agent:HOST` may steer, ping and read. A change is computed on the
pure table, stored, put into the datapath, then answered; all that happens in one step of the event loop, so requests never mix. A
process that dies in between finds the stored table when it starts again and makes the datapath equal to it.

A client's requests take effect in the order in which it made them: its next connection ends the one before. Else a steer that
waits in an old connection (the edge was frozen, or the path was) would undo a newer one of the same term.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Protocol

from architect.conduit import edge_table
from architect.conduit.edge_datapath import EdgeRoute
from architect.conduit.edge_store import EdgeStore
from architect.conduit.edge_table import EdgePorts, EdgeTable
from architect.conduit.flow_aging import FlowTimeouts
from architect.errors import ArchitectError, IncompatibleError, PeerError, UsageError
from architect.model.ids import VmId
from architect.runtime.clock import Clock
from architect.runtime.rpc import Call, Channel, peer_name
from architect.wire.edge_messages import (
    DefineVm,
    Done,
    EdgeFacts,
    EdgeHello,
    EdgeMessage,
    EdgeState,
    Endpoints,
    ForgetVm,
    Ping,
    Pong,
    ReadEdge,
    ResetFlows,
    Steer,
    Steered,
)
from architect.wire.framing import PROTOCOL_VERSION

AGING_INTERVAL_S = 30.0
CONTROL = "control"
AGENT_PREFIX = "agent:"
_FOR_AGENTS = (EdgeHello, Steer, Ping, ReadEdge)

_log = logging.getLogger(__name__)


class EdgeDatapathPort(Protocol):
    """What the server needs of the datapath; `EdgeDatapath` is one."""

    def apply(self, routes: tuple[EdgeRoute, ...]) -> None:
        """Make VMs and services those of `routes`."""
        ...

    def steer(self, route: EdgeRoute) -> None:
        """Set one VM's place."""
        ...

    def forget_flows(self, vni: int) -> None:
        """Forget all flows of a VM."""
        ...

    def reset_flows(self, route: EdgeRoute) -> int:
        """Forget all flows of a VM and make both ends of its TCP connections notice."""
        ...

    def age_flows(self, timeouts: FlowTimeouts) -> int:
        """Forget the flows that are over."""
        ...

    def counters(self) -> dict[str, int]:
        """Packet counters by name."""
        ...


class EdgeServer:
    """One edge's table and datapath, and who may change them."""

    def __init__(self, datapath: EdgeDatapathPort, store: EdgeStore, ports: EdgePorts, underlay_address: str) -> None:
        self._datapath = datapath
        self._store = store
        self._ports = ports
        self._facts = EdgeFacts(ports.public_addresses, underlay_address)
        self._table = EdgeTable()
        self._visits: dict[str, EdgeVisit] = {}

    def restore(self) -> None:
        """Take up the stored table and make the datapath equal to it.

        Raises:
            HostError: table or datapath cannot be used.
        """
        self._table = self._store.load()
        self._datapath.apply(self._table.routes())

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until it ends."""
        client = peer_name(writer)
        visit = EdgeVisit(self, client, writer.close)
        channel = Channel(reader, writer, EdgeMessage, visit.handle, client or "unnamed client")
        try:
            await channel.run()
        except ArchitectError as error:
            _log.warning("connection ended: %s", error)
        finally:
            if self._visits.get(client) is visit:
                del self._visits[client]

    def replace_visit(self, visit: EdgeVisit) -> None:
        """This is its client's connection from now on; the one before ends."""
        older = self._visits.get(visit.client)
        self._visits[visit.client] = visit
        if older is not None and older is not visit:
            older.close()

    def is_replaced(self, visit: EdgeVisit) -> bool:
        """Whether the client has opened a newer connection."""
        return self._visits.get(visit.client, visit) is not visit

    def answer(self, message: EdgeMessage, client: str) -> EdgeMessage:
        """The answer to a client's request.

        Raises:
            UsageError: this client may not ask for that.
            ArchitectError: what forbids it; nothing has changed then.
        """
        if client != CONTROL and not (client.startswith(AGENT_PREFIX) and isinstance(message, _FOR_AGENTS)):
            raise UsageError(
                f"client {client!r}", f"may not ask an edge for {type(message).__name__}", "ask the control plane to do it"
            )
        match message:
            case EdgeHello(version=version):
                if version != PROTOCOL_VERSION:
                    raise IncompatibleError(
                        f"client {client}",
                        f"speaks version {version}, we {PROTOCOL_VERSION}",
                        "install the same version on both sides",
                    )
                return self._facts
            case Ping():
                return Pong(time.monotonic())
            case DefineVm():
                return self._define(message)
            case ForgetVm(vm=vm):
                return self._forget(vm)
            case Steer():
                return self._steer(message)
            case ResetFlows(vm=vm):
                return self._reset(vm)
            case ReadEdge(vm=vm):
                return self._read(vm)
            case _:
                raise PeerError(f"client {client}", f"sent {type(message).__name__}, which is an answer", "report this as a defect")

    def _define(self, message: DefineVm) -> Endpoints:
        table = edge_table.define(self._table, message, self._ports)
        self._become(table)
        return Endpoints(table.get(message.vm).endpoints)

    def _forget(self, vm: VmId) -> Done:
        if (record := self._table.find(vm)) is not None:
            self._become(self._table.without(vm))
            self._datapath.forget_flows(record.vni)
        return Done()

    def _steer(self, message: Steer) -> Steered:
        start_s = time.monotonic()
        table = edge_table.steer(self._table, message)
        self._store.save(table)
        self._table = table
        self._datapath.steer(table.get(message.vm).route())
        return Steered(start_s, time.monotonic())

    def _reset(self, vm: VmId) -> Done:
        table = edge_table.mark_reset(self._table, vm)
        self._become(table)
        self._datapath.reset_flows(table.get(vm).route())
        return Done()

    def _read(self, vm: VmId) -> EdgeState:
        records = self._table.records if not vm else tuple(record for record in self._table.records if record.vm == vm)
        return EdgeState(tuple(record.facts() for record in records), self._datapath.counters())

    def _become(self, table: EdgeTable) -> None:
        self._store.save(table)
        self._table = table
        self._datapath.apply(table.routes())

    async def keep_aging(self, clock: Clock, timeouts: FlowTimeouts) -> None:
        """Forget flows that are over, every `AGING_INTERVAL_S`; for ever. A round that fails is logged, and the next one tried."""
        while True:
            await clock.sleep(AGING_INTERVAL_S)
            try:
                await asyncio.to_thread(self._datapath.age_flows, timeouts)
            except ArchitectError as error:
                _log.warning("aging of flows: %s", error)


class EdgeVisit:
    """One connection of a client.

    :param client: the name in its certificate.
    :param close: ends the connection.
    """

    def __init__(self, server: EdgeServer, client: str, close: Callable[[], None]) -> None:
        self._server = server
        self.client = client
        self.close = close

    async def handle(self, message: EdgeMessage, _body: bytes, call: Call | None) -> EdgeMessage | None:
        """Serve one request (a `runtime.rpc` handler).

        Raises:
            PeerError: it is none, or comes late: the client has opened another connection since.
        """
        if call is None:
            raise PeerError(self.client, "sent a note", "send requests to an edge")
        if isinstance(message, EdgeHello):
            self._server.replace_visit(self)
        if self._server.is_replaced(self):
            raise PeerError(self.client, "asks on a connection that a newer one has replaced", "ask on the newest one")
        return self._server.answer(message, self.client)
