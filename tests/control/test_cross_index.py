"""The book's and the fleet's indexes: what they find is what a search through everything finds."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from architect.control.cross_index import CrossIndex
from architect.control.records import Desired, MigrationRecord, MoveCause, VmRecord
from architect.control.sighting_index import Sighted, SightingIndex
from architect.model.handover_state import HandoverState, MigrationMode
from architect.model.ids import HostName, MigrationId, VmId, Vni
from architect.model.vm_spec import VmRequest
from architect.model.vm_state import VmState
from architect.wire.agent_messages import VmObservation

VMS = [VmId(f"vm-{index:012x}") for index in range(3)]
MOVES = [MigrationId(f"mig-{index:012x}") for index in range(4)]
HOSTS = [HostName(name) for name in ("a", "b", "c")]
NAMES = ["web", "db"]

vm_records = st.builds(
    lambda vm, name, host, desired: VmRecord(VmRequest(vm, name, Vni(1), "oci:x", "10.88.0.2"), 0.0, desired, host=host),
    st.sampled_from(VMS), st.sampled_from(NAMES), st.sampled_from(HOSTS), st.sampled_from(Desired),
)  # fmt: skip
move_ends = st.tuples(st.sampled_from(VMS), st.sampled_from(HOSTS), st.sampled_from(HOSTS))
move_steps = st.tuples(st.sampled_from(MOVES), st.sampled_from(HandoverState), st.booleans())


def _move(identity: MigrationId, ends: tuple[VmId, HostName, HostName]) -> MigrationRecord:
    vm, source, target = ends
    return MigrationRecord(identity, vm, "x", source, target, MigrationMode.AUTO, False, MoveCause.USER, 1, 0.0)


@given(st.lists(vm_records, max_size=4, unique_by=lambda vm: vm.id), st.lists(st.tuples(vm_records, st.booleans()), max_size=30))
def test_a_hosts_vms_and_a_names_vm_are_those_of_the_records(begin: list[VmRecord], steps: list[tuple[VmRecord, bool]]) -> None:
    records = {vm.id: vm for vm in begin}
    index = CrossIndex(begin, [])
    for record, goes in steps:
        before = records.pop(record.id, None)
        index.put_vm(before, None if goes else record)
        records |= {} if goes else {record.id: record}
        for host in HOSTS:
            assert {vm.id: vm for vm in index.vms_on(host)} == {vm.id: vm for vm in records.values() if vm.host == host}
        for name in NAMES:
            there = [vm for vm in records.values() if vm.request.name == name and not vm.is_tombstone]
            found = index.vm_named(name)
            assert (found in there) if there else found is None


@given(st.lists(move_ends, min_size=4, max_size=4), st.lists(move_steps, max_size=20))
def test_the_moves_under_way_are_those_that_have_not_ended(
    ends: list[tuple[VmId, HostName, HostName]], steps: list[tuple[MigrationId, HandoverState, bool]]
) -> None:
    made = {identity: _move(identity, end) for identity, end in zip(MOVES, ends, strict=True)}
    records: dict[MigrationId, MigrationRecord] = {}
    index = CrossIndex([], [])
    for identity, state, goes in steps:
        before, after = records.pop(identity, None), msgspec.structs.replace(made[identity], state=state)
        index.put_move(before, None if goes else after)
        records |= {} if goes else {identity: after}
        under_way = {move.id: move for move in records.values() if not move.state.is_terminal}
        assert index.open_moves == under_way
        for vm in VMS:
            there = [move for move in under_way.values() if move.vm == vm]
            found = index.move_of(vm)
            assert (found in there) if there else found is None
        for host in HOSTS:
            at = {move.id: move for move in index.moves_at(host)}
            assert at == {move.id: move for move in under_way.values() if host in (move.source, move.target)}


@given(st.lists(st.tuples(st.sampled_from(HOSTS), st.lists(st.sampled_from(VMS), unique=True)), max_size=20))
def test_the_hosts_that_report_a_vm_are_those_whose_last_reports_show_it(steps: list[tuple[Any, list[VmId]]]) -> None:
    index = SightingIndex()
    reports: dict[HostName, list[VmId]] = {}
    for term, (host, shown) in enumerate(steps):
        reports[host] = shown
        seen = tuple(VmObservation(vm, VmState.RUNNING, term) for vm in shown)
        index.put(host, seen)
        for vm in VMS:
            assert {sighted.host for sighted in index.of(vm)} == {name for name, vms in reports.items() if vm in vms}
        assert all(Sighted(host, one) in index.of(one.id) for one in seen)
