"""A simulated edge: the real `EdgeServer` over a table in memory, reached by hosts through calls that faults may cut short.

Its process may be killed: the next one restores the stored table, as the real one does from its file.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from architect.conduit.edge_datapath import EdgeRoute
from architect.conduit.edge_server import EdgeServer
from architect.conduit.edge_store import EdgeStore
from architect.conduit.edge_table import EdgePorts, EdgeTable
from architect.conduit.flow_aging import FlowTimeouts
from architect.errors import ConflictError
from architect.model.ids import VmId
from architect.testing.sim_events import EventKind
from architect.wire.edge_messages import DefineVm, Steer

if TYPE_CHECKING:
    from architect.testing.sim_machine import SimVm
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
        self.restart()

    def restart(self) -> None:
        """Another process takes up the stored table."""
        self.server = EdgeServer(_NoDatapath(), self._store, PORTS, UNDERLAY_ADDRESS)
        self.server.restore()

    def define(self, vm: SimVm) -> None:
        """The VM exists, as the control plane says."""
        request = vm.spec.request
        self.server.answer(DefineVm(vm.id, request.vni, request.address, request.publish), "control")

    def entry(self, vm: VmId) -> EdgeEntry | None:
        """Where the VM's packets go; None if it is not known here, or nowhere."""
        record = self._store.table.find(vm)
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
        entry, service = EdgeEntry(term, host, previous), self._edge.service

        def change() -> None:
            self._edge.steer(service.world.vms[self._vm], entry, self._host)

        await service.ask(self._host, f"edge.steer {term} {host}", change, self._vm)

    async def settle(self) -> None:
        """As the port says."""
        await asyncio.sleep(0.005)
