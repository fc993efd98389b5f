"""The edge's table: ports belong to one VM, places follow terms."""

from __future__ import annotations

import msgspec
import pytest

from architect.conduit.edge_table import EdgePorts, EdgeTable, define, mark_reset, steer
from architect.errors import ConflictError, NotFoundError, UsageError
from architect.model.endpoints import Endpoint, Protocol, Publish
from architect.model.ids import VmId, Vni
from architect.wire.edge_messages import DefineVm, Steer

PORTS = EdgePorts(("203.0.113.10", "203.0.113.11"), 7000)
WEB = Publish(8080, 80)


def definition(number: int, *publish: Publish) -> DefineVm:
    return DefineVm(VmId(f"vm-{number}"), Vni(number), f"10.88.0.{number}", publish)


def test_a_defined_vm_gets_its_ports_on_the_first_public_address() -> None:
    table = define(EdgeTable(), definition(1, WEB, Publish(8080, 53, Protocol.UDP)), PORTS)
    assert table.get(VmId("vm-1")).endpoints == (
        Endpoint("203.0.113.10", 8080, Protocol.TCP, 80),
        Endpoint("203.0.113.10", 8080, Protocol.UDP, 53),
    )


def test_defining_again_changes_nothing_but_what_is_published() -> None:
    table = steer(define(EdgeTable(), definition(1, WEB), PORTS), Steer(VmId("vm-1"), Vni(1), 3, "192.0.2.21"))
    assert define(table, definition(1, WEB), PORTS) == table
    fewer = define(table, definition(1), PORTS).get(VmId("vm-1"))
    assert (fewer.endpoints, fewer.host, fewer.term) == ((), "192.0.2.21", 3)


def test_a_port_taken_on_one_address_is_given_on_the_next() -> None:
    table = define(define(EdgeTable(), definition(1, WEB), PORTS), definition(2, WEB), PORTS)
    assert [record.endpoints[0].address for record in table.records] == ["203.0.113.10", "203.0.113.11"]


def test_a_port_that_another_vm_has_everywhere_is_refused_with_its_name() -> None:
    table = define(define(EdgeTable(), definition(1, WEB), PORTS), definition(2, WEB), PORTS)
    with pytest.raises(ConflictError, match=r"port 8080/tcp of 203.0.113.11: VM vm-2 has it; choose another public port"):
        define(table, definition(3, WEB), PORTS)


@pytest.mark.parametrize("publish", [Publish(7000, 80), Publish(4790, 80, Protocol.UDP)])
def test_the_edges_own_ports_are_refused(publish: Publish) -> None:
    with pytest.raises(ConflictError, match="the edge itself has it"):
        define(EdgeTable(), definition(1, publish), PORTS)


@pytest.mark.parametrize("other", [Publish(8080, 81), Publish(8081, 80)])
def test_a_port_asked_for_twice_is_refused(other: Publish) -> None:
    with pytest.raises(UsageError, match="asked for twice"):
        define(EdgeTable(), definition(1, WEB, other), PORTS)


def test_a_vni_or_address_of_another_vm_is_refused() -> None:
    table = define(EdgeTable(), definition(1), PORTS)
    for stolen in (
        DefineVm(VmId("vm-2"), Vni(1), "10.88.0.2", ()),
        DefineVm(VmId("vm-2"), Vni(2), "10.88.0.1", ()),
    ):
        with pytest.raises(ConflictError, match="VM vm-1 has VNI 1"):
            define(table, stolen, PORTS)


@pytest.mark.parametrize("changed", [{"vni": 0}, {"inner_address": ""}, {"inner_address": "x"}, {"publish": (Publish(0, 1),)}])
def test_values_that_are_none_are_refused(changed: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        define(EdgeTable(), msgspec.structs.replace(definition(1), **changed), PORTS)


def test_an_older_term_cannot_steer_but_an_equal_one_can() -> None:
    vm, vni = VmId("vm-1"), Vni(1)
    table = define(EdgeTable(), definition(1), PORTS)
    table = steer(table, Steer(vm, vni, 2, "192.0.2.22", "192.0.2.21"))
    table = steer(table, Steer(vm, vni, 2, "192.0.2.21", "192.0.2.22"))
    assert (table.get(vm).host, table.get(vm).previous) == ("192.0.2.21", "192.0.2.22")
    with pytest.raises(ConflictError, match="term 1 is over, the edge has seen term 2"):
        steer(table, Steer(vm, vni, 1, "192.0.2.22"))


def test_a_vm_that_is_not_known_cannot_be_steered_nor_reset() -> None:
    with pytest.raises(NotFoundError, match="does not know it"):
        steer(EdgeTable(), Steer(VmId("vm-1"), Vni(1), 1, "192.0.2.21"))
    with pytest.raises(NotFoundError, match="does not know it"):
        mark_reset(EdgeTable(), VmId("vm-1"))


def test_another_vni_than_the_defined_one_cannot_be_steered() -> None:
    with pytest.raises(ConflictError, match="its VNI is 1, not 2"):
        steer(define(EdgeTable(), definition(1), PORTS), Steer(VmId("vm-1"), Vni(2), 1, "192.0.2.21"))
