"""A simulated edge: the real `EdgeServer` over a table in memory, reached by hosts through calls that faults may cut short.

Its process may be killed: the next one restores the stored table, as the real one does from its file.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec

from architect.conduit.edge_datapath import EdgeRoute
from architect.conduit.edge_server import EdgeServer
from architect.conduit.edge_store import EdgeStore
from architect.conduit.edge_table import EdgePorts, EdgeRecord, EdgeTable
from architect.conduit.flow_aging import FlowTimeouts
from architect.errors import ConflictError, UnavailableError
from architect.model.ids import VmId
from architect.testing.sim_events import EventKind
from architect.wire.edge_messages import DefineVm, Steer

if TYPE_CHECKING:
    from architect.testing.sim_machine import SimVm
    from architect.testing.sim_network import SimEnd
    from architect.testing.sim_store import SimService

PORTS = EdgePorts(("203.0.113.1",), 7401)
UNDERLAY_ADDRESS = "198.18.0.1"


class EdgeEntry(msgspec.Struct, frozen=True):
    """Where a VM's packets go; hosts by name."""

    term: int
    host: str
    previous: str


class SimEdgeStore(EdgeStore):
    """The edge's file, in memory."""

    def __init__(self) -> None:
        self.table = EdgeTable()

    def load(self) -> EdgeTable:
        """As the file's."""
        return self.table

    def save(self, table: EdgeTable) -> None:
        """As the file's."""
        self.table = table


class _NoDatapath:
    """The simulation reads the table itself."""

    def apply(self, routes: tuple[EdgeRoute, ...]) -> None:
        """Nothing."""

    def steer(self, route: EdgeRoute) -> None:
        """Nothing."""

    def forget_flows(self, vni: int) -> None:
        """Nothing."""

    def reset_flows(self, route: EdgeRoute) -> int:
        """Nothing."""
        return 0

    def age_flows(self, timeouts: FlowTimeouts) -> int:
        """Nothing."""
        return 0

    def counters(self) -> dict[str, int]:
        """None."""
        return {}


class SimEdge:
    """One edge. `names` are the hosts' names by underlay address."""

    def __init__(self, service: SimService, names: dict[str, str]) -> None:
        self.service = service
        self._names = names
        self._store = SimEdgeStore()
        self._indexed = self._store.table
        self._index: dict[VmId, EdgeRecord] = {}
        self.connections: list[SimEnd] = []
        self._asked: Counter[str] = Counter()
        self._heard: Counter[str] = Counter()
        self.restart()

    def restart(self) -> None:
        """Another process takes up the stored table."""
        self.server = EdgeServer(_NoDatapath(), self._store, PORTS, UNDERLAY_ADDRESS)
        self.server.restore()
        self.service.is_down = False

    def crash(self, restart_s: float) -> None:
        """Its process is killed, and started again after a while; packets go on meanwhile."""
        self.service.world.say("edge", "killed")
        self.service.world.note(EventKind.CRASH, "edge")
        self.service.is_down = True
        for end in self.connections:
            end.close()
        self.connections = []
        self.service.world.loop.call_later(restart_s, self.restart)

    def ask(self, asker: str) -> int:
        """A host makes a request: its number."""
        self._asked[asker] += 1
        return self._asked[asker]

    def hear(self, asker: str, number: int) -> None:
        """A host's request arrives. One that was late has lost its connection: see `EdgeServer`.

        Raises:
            UnavailableError: a later one of the host has arrived before.
        """
        if number < self._heard[asker]:
            raise UnavailableError("edge", "the connection has ended", "ask on the newest one")
        self._heard[asker] = number

    def define(self, vm: SimVm) -> None:
        """The VM exists, as the control plane says."""
        request = vm.spec.request
        self.server.answer(DefineVm(vm.id, request.vni, request.address, request.publish), "control")

    def entry(self, vm: VmId) -> EdgeEntry | None:
        """Where the VM's packets go; None if it is not known here, or nowhere."""
        table = self._store.table
        if table is not self._indexed:
            self._indexed, self._index = table, {record.vm: record for record in table.records}
        record = self._index.get(vm)
        if record is None or not record.host:
            return None
        return EdgeEntry(record.term, self._names[record.host], self._names.get(record.previous, ""))

    def steer(self, vm: SimVm, entry: EdgeEntry, asker: str) -> None:
        """Change an entry for a host; `entry` has underlay addresses.

        Raises:
            ConflictError, NotFoundError: as the edge's.
        """
        world, answered = self.service.world, self.service.answers(asker)
        host = self._names[entry.host]
        details: dict[str, Any] = {"term": entry.term, "host": asker, "to": host, "answered": answered}
        try:
            self.server.answer(Steer(vm.id, vm.spec.request.vni, entry.term, entry.host, entry.previous), f"agent:{asker}")
        except ConflictError:
            world.note(EventKind.STEER_REFUSED, "edge", vm.id, **details)
            raise
        world.note(EventKind.STEER, "edge", vm.id, **details)
        previous = self._names.get(entry.previous, "nobody")
        world.say("edge", f"{vm.id} -> {host} (term {entry.term}, previous {previous})", vm.id)


class SimEdgePort:
    """An `EdgePort` as one host reaches it."""

    def __init__(self, edge: SimEdge, vm: VmId, host: str) -> None:
        self._edge = edge
        self._vm = vm
        self._host = host

    async def steer(self, term: int, host: str, previous: str) -> None:
        """As the port says."""
        entry, service, number = EdgeEntry(term, host, previous), self._edge.service, self._edge.ask(self._host)

        def change() -> None:
            self._edge.hear(self._host, number)
            self._edge.steer(service.world.vms[self._vm], entry, self._host)

        await service.ask(self._host, f"edge.steer {term} {host}", change, self._vm)

    async def settle(self) -> None:
        """As the port says."""
        await asyncio.sleep(0.005)
