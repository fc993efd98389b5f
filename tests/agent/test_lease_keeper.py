"""The keeper of a host's lease: what stops and lets go on which VM, and what stops none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from architect.agent.lease_keeper import LeaseKeeper
from architect.agent.vm_record import VmPhase
from architect.errors import UnavailableError
from architect.migration.host_lease import Reading
from architect.model.ids import HostName, MigrationId, VmId
from architect.model.ownership import OwnershipRecord, RecordKind
from architect.testing.fake_ownership import Delivery, FakeOwnershipLog, Fault, OwnershipTable
from architect.testing.virtual_clock import VirtualClock, VirtualLoop, run_virtual
from architect.wire.edge_messages import EdgeState, EdgeVm

VM = VmId("vm-000000000001")
HERE, THERE = "10.0.0.1", "10.0.0.2"


class _Machine:
    def __init__(self) -> None:
        self.runs = True
        self.is_running = True

    async def pause(self) -> float:
        self.runs = False
        return 0.0

    async def resume(self) -> float:
        self.runs = True
        return 0.0


class _Edge:
    def __init__(self) -> None:
        self.is_away = False
        self.term, self.host = 1, HERE

    async def read(self) -> EdgeState:
        if self.is_away:
            raise UnavailableError("edge", "is not connected", "see that it runs")
        return EdgeState((EdgeVm(VM, cast("Any", 1), "10.88.0.2", self.host, "", self.term, ()),), {})


class _Rig:
    """One host with one VM, its store and its edge, on a virtual clock."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.clock = VirtualClock(loop, 0.0)
        self.records = OwnershipTable()
        self.log = FakeOwnershipLog(self.records, self.clock)
        self.edge = _Edge()
        self.machine = _Machine()
        self.frozen_s = 0.0
        config = SimpleNamespace(name="aws-1", address=HERE, lease_s=15.0)
        host = SimpleNamespace(config=config, ownership=self.log, edge=self.edge, clock=self.clock, changed=lambda: None)
        record = SimpleNamespace(id=VM, phase=VmPhase.RUNNING, term=1, request=SimpleNamespace(name="web"))
        self.vm = SimpleNamespace(
            record=record, parts=SimpleNamespace(machine=self.machine), guest=None, paused_because="", destroy=self._destroy
        )
        self.is_destroyed = False
        self.moving: set[VmId] = set()
        moves = SimpleNamespace(source=SimpleNamespace(is_moving=lambda vm: vm in self.moving))
        self.keeper = LeaseKeeper(cast("Any", host), cast("Any", _Table(self)), cast("Any", moves), self._read)
        self.write("aws-1")

    def write(self, host: str, kind: RecordKind = RecordKind.RUN) -> None:
        term = len(self.records.records.get(VM, [])) + 1
        self.records.create(OwnershipRecord(VM, term, kind, HostName(host), f"w{term}", MigrationId("")))

    def store_away(self, is_away: bool) -> None:
        self.log.usual = Fault(Delivery.UNREACHABLE) if is_away else Fault()

    def _read(self) -> Reading:
        return Reading(self.loop.now_s + self.frozen_s, 1e9 + self.loop.now_s + self.frozen_s)

    async def _destroy(self) -> None:
        self.is_destroyed = True
        self.machine.runs = False


class _Table:
    def __init__(self, rig: _Rig) -> None:
        self._rig = rig

    def __iter__(self) -> Any:
        return iter([] if self._rig.is_destroyed else [self._rig.vm])

    def get(self, vm: VmId) -> Any:
        return None if self._rig.is_destroyed else self._rig.vm

    def drop(self, vm: VmId) -> None:
        """The VM is not here any more."""


def _runs(rig: _Rig) -> bool:
    return rig.machine.runs


def play(scene: Callable[[_Rig], Any]) -> None:
    async def main(loop: VirtualLoop) -> None:
        rig = _Rig(loop)
        keeping = asyncio.create_task(rig.keeper.run())
        await asyncio.sleep(5)
        assert _runs(rig), "a host in touch pauses nothing"
        await scene(rig)
        keeping.cancel()
        await asyncio.wait([keeping])

    run_virtual(main)


@pytest.mark.parametrize("who", ["store", "edge"])
def test_an_outage_of_the_store_alone_or_of_the_edge_alone_stops_nothing(who: str) -> None:
    async def scene(rig: _Rig) -> None:
        rig.store_away(who == "store")
        rig.edge.is_away = who == "edge"
        await asyncio.sleep(600)
        assert _runs(rig) and not rig.vm.paused_because

    play(scene)


@pytest.mark.parametrize("who", ["store", "edge"])
def test_a_host_that_reaches_neither_pauses_its_vms_and_goes_on_when_one_is_back(who: str) -> None:
    async def scene(rig: _Rig) -> None:
        rig.store_away(True)
        rig.edge.is_away = True
        await asyncio.sleep(10)
        assert _runs(rig), "the lease lasts"
        await asyncio.sleep(10)
        assert not _runs(rig) and "neither ownership log nor edge" in rig.vm.paused_because
        rig.store_away(who != "store")
        rig.edge.is_away = who != "edge"
        await asyncio.sleep(4)
        assert _runs(rig) and not rig.vm.paused_because and not rig.is_destroyed

    play(scene)


@pytest.mark.parametrize("kind", [RecordKind.RUN, RecordKind.END])
def test_a_host_that_comes_back_to_a_newer_record_destroys_its_copy_and_never_runs_it(kind: RecordKind) -> None:
    async def scene(rig: _Rig) -> None:
        rig.store_away(True)
        rig.edge.is_away = True
        await asyncio.sleep(20)
        rig.write("gcp-1", kind)
        rig.store_away(False)
        await asyncio.sleep(4)
        assert rig.is_destroyed and not rig.machine.runs

    play(scene)


def test_a_newer_term_at_the_edge_pauses_the_vm_until_the_log_has_spoken() -> None:
    async def scene(rig: _Rig) -> None:
        rig.store_away(True)
        rig.edge.term, rig.edge.host = 2, THERE
        await asyncio.sleep(4)
        assert not _runs(rig) and "term 2" in rig.vm.paused_because
        await asyncio.sleep(60)
        assert not _runs(rig) and not rig.is_destroyed
        rig.write("gcp-1")
        rig.store_away(False)
        await asyncio.sleep(4)
        assert rig.is_destroyed

    play(scene)


def test_a_thawed_host_pauses_before_it_asks_and_goes_on_when_answered() -> None:
    async def scene(rig: _Rig) -> None:
        rig.store_away(True)
        rig.edge.is_away = True
        rig.frozen_s = 3600.0
        await asyncio.sleep(0.6)
        assert not _runs(rig)
        rig.edge.is_away = False
        await asyncio.sleep(4)
        assert _runs(rig)

    play(scene)


def test_a_vm_that_moves_is_left_to_its_handover() -> None:
    async def scene(rig: _Rig) -> None:
        rig.moving.add(VM)
        rig.store_away(True)
        rig.edge.is_away = True
        await asyncio.sleep(60)
        assert _runs(rig)
        rig.moving.clear()
        await asyncio.sleep(1)
        assert not _runs(rig), "and paused when that has ended"

    play(scene)


def test_an_answer_from_before_the_vm_came_back_here_says_nothing() -> None:
    async def scene(rig: _Rig) -> None:
        rig.write("gcp-1")
        rig.vm.record.term = 3
        await asyncio.sleep(10)
        assert _runs(rig) and not rig.is_destroyed

    play(scene)
