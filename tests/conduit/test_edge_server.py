"""The edge's server: who may do what, and what outlives it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import cast

import pytest

from architect.conduit.edge_datapath import EdgeRoute
from architect.conduit.edge_server import EdgeServer, EdgeVisit
from architect.conduit.edge_store import EdgeStore
from architect.conduit.edge_table import EdgePorts
from architect.conduit.flow_aging import FlowTimeouts
from architect.errors import ConflictError, HostError, IncompatibleError, PeerError, UsageError
from architect.model.endpoints import Endpoint, Protocol, Publish
from architect.model.ids import VmId, Vni
from architect.runtime.rpc import Call
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

VM = VmId("vm-1")
DEFINE = DefineVm(VM, Vni(1), "10.88.0.1", (Publish(8080, 80),))
STEER = Steer(VM, Vni(1), 2, "192.0.2.21")


class FakeDatapath:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.routes: dict[int, EdgeRoute] = {}
        self.forgotten: list[int] = []

    def apply(self, routes: tuple[EdgeRoute, ...]) -> None:
        self.routes = {route.vni: route for route in routes}

    def steer(self, route: EdgeRoute) -> None:
        self.routes[route.vni] = route

    def forget_flows(self, vni: int) -> None:
        self.forgotten.append(vni)

    def reset_flows(self, route: EdgeRoute) -> int:
        assert self.routes[route.vni].is_tracked, "packets of older connections are refused before their ends are told"
        self.forgotten.append(route.vni)
        return 0

    def age_flows(self, timeouts: FlowTimeouts) -> int:
        return 0

    def counters(self) -> dict[str, int]:
        return {"to_vm": 7}


def make(folder: Path) -> tuple[EdgeServer, FakeDatapath]:
    datapath = FakeDatapath()
    server = EdgeServer(datapath, EdgeStore(folder), EdgePorts(("203.0.113.10",), 7000), "192.0.2.10")
    server.restore()
    return server, datapath


def test_a_vm_is_defined_by_control_steered_by_an_agent_and_read_by_both(tmp_path: Path) -> None:
    server, datapath = make(tmp_path)
    endpoint = Endpoint("203.0.113.10", 8080, Protocol.TCP, 80)
    assert server.answer(DEFINE, "control") == Endpoints((endpoint,))
    steered = server.answer(STEER, "agent:a")
    assert isinstance(steered, Steered) and 0 < steered.start_s <= steered.end_s <= time.monotonic()
    assert datapath.routes[1] == EdgeRoute(1, "10.88.0.1", "192.0.2.21", "", "203.0.113.10", False, (endpoint,))
    for client in ("control", "agent:a"):
        state = server.answer(ReadEdge(VM), client)
        assert isinstance(state, EdgeState)
        assert (state.vms[0].host, state.vms[0].term, state.counters) == ("192.0.2.21", 2, {"to_vm": 7})
    assert server.answer(ReadEdge(VmId("vm-2")), "control") == EdgeState((), {"to_vm": 7})


@pytest.mark.parametrize("message", [DEFINE, ForgetVm(VM), ResetFlows(VM)])
def test_an_agent_may_not_do_what_is_the_control_planes(tmp_path: Path, message: EdgeMessage) -> None:
    server, datapath = make(tmp_path)
    with pytest.raises(UsageError, match="may not ask an edge for"):
        server.answer(message, "agent:a")
    assert datapath.routes == {}


@pytest.mark.parametrize("client", ["", "edge:other", "control2", "someone"])
def test_others_may_do_nothing(tmp_path: Path, client: str) -> None:
    with pytest.raises(UsageError, match="may not ask"):
        make(tmp_path)[0].answer(Ping(), client)


def test_hello_is_answered_with_facts_and_another_version_refused(tmp_path: Path) -> None:
    server, _datapath = make(tmp_path)
    assert server.answer(EdgeHello(PROTOCOL_VERSION, "x"), "agent:a") == EdgeFacts(("203.0.113.10",), "192.0.2.10")
    with pytest.raises(IncompatibleError, match="speaks version"):
        server.answer(EdgeHello(PROTOCOL_VERSION + 1, "x"), "agent:a")


def test_an_answer_is_no_request(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match="is an answer"):
        make(tmp_path)[0].answer(Pong(1.0), "control")


def test_a_server_that_starts_again_has_the_same_table(tmp_path: Path) -> None:
    server, datapath = make(tmp_path)
    server.answer(DEFINE, "control")
    server.answer(STEER, "agent:a")
    again, restored = make(tmp_path)
    assert restored.routes == datapath.routes
    with pytest.raises(ConflictError, match="term 1 is over"):
        again.answer(Steer(VM, Vni(1), 1, "192.0.2.22"), "agent:b")


def test_a_forgotten_vm_and_its_flows_are_gone(tmp_path: Path) -> None:
    server, datapath = make(tmp_path)
    server.answer(DEFINE, "control")
    assert server.answer(ForgetVm(VM), "control") == Done()
    assert (datapath.routes, datapath.forgotten) == ({}, [1])
    assert server.answer(ForgetVm(VM), "control") == Done()


def test_a_reset_forgets_flows_and_refuses_older_connections_from_then_on(tmp_path: Path) -> None:
    server, datapath = make(tmp_path)
    server.answer(DEFINE, "control")
    assert server.answer(ResetFlows(VM), "control") == Done()
    assert datapath.forgotten == [1] and datapath.routes[1].is_tracked
    assert make(tmp_path)[1].routes[1].is_tracked


def test_a_table_that_cannot_be_stored_changes_nothing(tmp_path: Path) -> None:
    server, datapath = make(tmp_path)
    (tmp_path / "table.json.0.new").mkdir()
    with pytest.raises(HostError, match="edge table"):
        server.answer(DEFINE, "control")
    assert datapath.routes == {}
    assert server.answer(ReadEdge(VmId("")), "control") == EdgeState((), {"to_vm": 7})


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "table.json").write_bytes(b"{")
    with pytest.raises(HostError, match=r"table\.json"):
        make(tmp_path)


def test_a_request_that_waited_in_an_older_connection_of_the_client_has_no_effect(tmp_path: Path) -> None:
    server, _ = make(tmp_path)
    server.answer(DEFINE, "control")
    closed: list[str] = []
    call = cast(Call, object())

    async def talk() -> None:
        older = EdgeVisit(server, "agent:a", lambda: closed.append("older"))
        newer = EdgeVisit(server, "agent:a", lambda: closed.append("newer"))
        for visit in (older, newer):
            await visit.handle(EdgeHello(PROTOCOL_VERSION, "agent:a"), b"", call)
        await newer.handle(STEER, b"", call)
        with pytest.raises(PeerError, match="newer one"):
            await older.handle(Steer(VM, Vni(1), 2, "192.0.2.21", "192.0.2.22"), b"", call)

    asyncio.run(talk())
    assert closed == ["older"]
    state = server.answer(ReadEdge(VM), "control")
    assert isinstance(state, EdgeState)
    assert state.vms[0].previous == ""
