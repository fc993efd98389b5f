"""The real engines, in simulations, do only what the explored model of the ownership protocol allows."""

from __future__ import annotations

import msgspec
import pytest

from architect.model.handover_state import MigrationMode
from architect.model.ownership import OwnershipRecord, RecordKind
from architect.testing.ownership.projection import compare
from architect.testing.sim_events import EventKind
from architect.testing.sim_scenario import HOSTS, Move, draw_scenario
from architect.testing.sim_store import SimOwnershipPort
from architect.testing.simulator import VM, Simulation, simulate

SEEDS = 30
SEEDS_SOAK = 1000
PLAIN = msgspec.structs.replace(draw_scenario(16), moves=(Move(1, MigrationMode.PRECOPY, None, False),), faults=())
"""One move, and no fault."""


@pytest.mark.parametrize("first", range(0, SEEDS, 10))
def test_every_step_of_a_run_is_one_that_the_model_allows(first: int) -> None:
    for seed in range(first, first + 10):
        deviation = compare(simulate(draw_scenario(seed)).events, VM, HOSTS[0])
        assert deviation is None, f"seed {seed}: {deviation}"


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_every_step_of_many_runs_is_one_that_the_model_allows() -> None:
    for seed in range(SEEDS, SEEDS_SOAK):
        deviation = compare(simulate(draw_scenario(seed)).events, VM, HOSTS[0])
        assert deviation is None, f"seed {seed}: {deviation}"


def test_a_vm_is_given_back_in_a_run_and_the_model_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    create = SimOwnershipPort.create
    killed: list[str] = []

    def sabotage(simulation: Simulation) -> None:
        async def deadly(port: SimOwnershipPort, record: OwnershipRecord) -> OwnershipRecord:
            """The target's QEMU is killed when its record exists, and before it is told to run."""
            existing = await create(port, record)
            if existing == record and record.kind is RecordKind.RUN and not killed:
                killed.append(port.host)
                simulation.hosts[port.host].qemus[VM].die()
            return existing

        monkeypatch.setattr(SimOwnershipPort, "create", deadly)

    result = simulate(PLAIN, sabotage)
    backs = [event.record for event in result.events if event.kind is EventKind.RECORD_CREATED and event.term == 3]
    assert killed and backs and backs[0] is not None and (backs[0].kind, backs[0].host) == (RecordKind.RUN, HOSTS[0])
    assert not result.is_lost, "the source's copy goes on"
    assert compare(result.events, VM, HOSTS[0]) is None


def test_a_source_that_runs_again_without_its_record_leaves_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    create = SimOwnershipPort.create

    async def pretend(port: SimOwnershipPort, record: OwnershipRecord) -> OwnershipRecord:
        is_of_source = record.kind is RecordKind.ABORT and record.host == port.host
        return record if is_of_source else await create(port, record)

    def sabotage(_: Simulation) -> None:
        monkeypatch.setattr(SimOwnershipPort, "create", pretend)

    for seed in (12, *range(60)):
        deviation = compare(simulate(draw_scenario(seed), sabotage).events, VM, HOSTS[0])
        if deviation is not None:
            assert deviation.event.kind in (EventKind.RESUME, EventKind.STEER, EventKind.RECORD_CREATED)
            return
    pytest.fail("no seed shows it")


@pytest.mark.parametrize(
    ("kind", "term"), [(EventKind.RESUME, 0), (EventKind.PAUSE, 0), (EventKind.STEER, 1), (EventKind.RECORD_CREATED, 2)]
)
def test_a_step_left_out_of_a_run_is_missed(kind: EventKind, term: int) -> None:
    events = simulate(PLAIN).events
    assert compare(events, VM, HOSTS[0]) is None
    last = max(index for index, event in enumerate(events) if (event.kind, event.term) == (kind, term))
    assert compare((*events[:last], *events[last + 1 :]), VM, HOSTS[0]) is not None


def test_a_step_of_another_host_is_not_taken_for_the_owners() -> None:
    events = simulate(PLAIN).events
    index = next(index for index, event in enumerate(events) if event.kind is EventKind.RECORD_CREATED and event.term == 2)
    record = events[index].record
    assert record is not None
    forged = msgspec.structs.replace(events[index], record=msgspec.structs.replace(record, host=HOSTS[2]))
    deviation = compare((*events[:index], forged, *events[index + 1 :]), VM, HOSTS[0])
    assert deviation is not None and "is not allowed" in str(deviation)
