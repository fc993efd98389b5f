"""What a look of the control plane costs, in instructions of the interpreter: it grows as the fleet does, not as its square."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, cast

import pytest

import architect
from architect.control.database import Database, Write
from architect.control.plane import ControlPlane
from architect.control.reconcile import Reconciler
from architect.control.records import HostRecord, MigrationRecord, MoveCause, VmRecord
from architect.errors import NotFoundError
from architect.model.config import ControlConfig
from architect.model.handover_state import HandoverState, MigrationMode
from architect.model.ids import HostName, MigrationId, VmId, Vni
from architect.model.vm_spec import VmRequest
from architect.model.vm_state import VmState
from architect.runtime.rpc import Channel
from architect.testing.virtual_time import LoopClock
from architect.wire.agent_messages import HostReport, VmObservation
from tests.control.rig import CountingEntropy, simulate
from tests.migration.handover_values import facts

OURS = tuple(str(Path(architect.__file__).parent / layer) for layer in ("control", "policy"))
GROWTH_MAX = 2.1  # of what twice the fleet adds; 4 is a square's


class ListDatabase(Database):
    """What it was made with; takes every commit."""

    def __init__(self, records: Sequence[Any]) -> None:
        self._records = records

    async def commit(self, writes: Sequence[Write]) -> None:
        """Nothing is kept."""

    def read_all(self, kind: type[Any]) -> list[Any]:
        """Those of that type."""
        return [record for record in self._records if isinstance(record, kind)]

    def read_counters(self) -> dict[str, int]:
        """None."""
        return {}


class SilentChannel:
    """A connection over which nothing is said."""

    is_closed = False

    def close(self) -> None:
        """Nothing to close."""


async def instructions(work: Callable[[], Awaitable[None]]) -> int:
    """How many instructions of the control plane's own code `work` runs; the reports' and records' C code is not counted."""
    count = 0

    def tell(frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.startswith(OURS):
            return None
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return tell

    before = sys.gettrace()
    sys.settrace(tell)
    try:
        await work()
    finally:
        sys.settrace(before)
    return count


def fleet_of(vm_count: int, host_count: int, emptying: int) -> ControlPlane:
    """A control plane whose hosts have reported all their VMs; every fourth VM moves. The last `emptying` hosts drain."""
    names = [HostName(f"h{index}") for index in range(host_count)]
    hosts = [HostRecord(facts(name), draining=index >= host_count - emptying) for index, name in enumerate(names)]
    vms = [_vm(index, names[index % host_count]) for index in range(vm_count)]
    moves = [_move(vm, names[(index * 4 + 1) % host_count]) for index, vm in enumerate(vms[::4])]

    async def no_edge() -> Channel:
        raise AssertionError("nobody dials")

    config = ControlConfig("test", "127.0.0.1", 0, "", "", "", "edge-1", "127.0.0.1", 0)
    plane = ControlPlane(config, ListDatabase([*hosts, *vms, *moves]), no_edge, LoopClock(), CountingEntropy())
    for name in names:
        plane.fabric.fleet.join(name, cast(Channel, SilentChannel()))
        seen = tuple(VmObservation(vm.id, VmState.RUNNING, 1) for vm in vms if vm.host == name)
        plane.fabric.fleet.hear(HostReport(name, 1 << 40, seen))
    return plane


def _vm(index: int, host: HostName) -> VmRecord:
    request = VmRequest(VmId(f"vm-{index:012x}"), f"vm{index}", Vni(index + 1), "oci:x", "10.88.0.2")
    return VmRecord(request, float(index), state=VmState.RUNNING, host=host, term=1)


def _move(vm: VmRecord, target: HostName) -> MigrationRecord:
    mode, state = MigrationMode.AUTO, HandoverState.PRECOPY
    return MigrationRecord(
        MigrationId(f"mig-{vm.id[3:]}"), vm.id, vm.request.name, vm.host, target, mode, False, MoveCause.DRAIN, 1, 0.0, state
    )


def cost(vm_count: int, work: Callable[[ControlPlane], Any], host_count: int = 8, emptying: int = 0) -> int:
    """The instructions of `work` on a fleet of so many VMs."""

    async def measured() -> int:
        plane = fleet_of(vm_count, host_count, emptying)

        async def once() -> None:
            if (found := work(plane)) is not None and inspect.isawaitable(found):
                await found

        return await instructions(once)

    return simulate(measured())


@pytest.mark.parametrize("emptying", [0, 6], ids=["at rest", "6 of 8 hosts empty"])
def test_a_look_costs_by_the_vms_there_are_not_by_their_square(emptying: int) -> None:
    costs = [cost(count, lambda plane: Reconciler(plane.fabric).look(), emptying=emptying) for count in (50, 100, 200)]
    assert costs[2] - costs[1] < (costs[1] - costs[0]) * GROWTH_MAX, costs


@pytest.mark.parametrize("emptying", [0, 1], ids=["at rest", "one host empties"])
def test_a_look_costs_by_the_hosts_there_are_not_by_their_square(emptying: int) -> None:
    costs = [cost(count * 5, lambda plane: Reconciler(plane.fabric).look(), count, emptying) for count in (10, 20, 40)]
    assert costs[2] - costs[1] < (costs[1] - costs[0]) * GROWTH_MAX, costs


def _find_nobody(plane: ControlPlane) -> None:
    with contextlib.suppress(NotFoundError):
        plane.fabric.book.find_vm("nobody")


@pytest.mark.parametrize(
    "question",
    [
        lambda plane: plane.fabric.fleet.sighted(VmId("vm-000000000004")),
        lambda plane: plane.fabric.book.move_of(VmId("vm-000000000005")),
        _find_nobody,
    ],
    ids=["who reports a vm", "the move of a vm", "the vm of a name"],
)
def test_a_question_about_one_vm_costs_the_same_in_any_fleet(question: Callable[[ControlPlane], Any]) -> None:
    assert cost(50, question) == cost(200, question)
