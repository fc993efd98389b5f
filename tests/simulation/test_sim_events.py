"""The event log: what a program reads of a simulation."""

from __future__ import annotations

from architect.model.ownership import RecordKind
from architect.testing.sim_events import EventKind, SimEvent
from architect.testing.sim_scenario import draw_scenario
from architect.testing.simulator import simulate


def test_a_handover_without_faults_is_told_in_its_order() -> None:
    events = simulate(draw_scenario(16)).events
    seen = [event for event in events if event.kind in (EventKind.RECORD_CREATED, EventKind.PAUSE, EventKind.RESUME)]
    assert [event.kind for event in seen[:5]] == [
        EventKind.RECORD_CREATED, EventKind.RESUME, EventKind.PAUSE, EventKind.RECORD_CREATED, EventKind.RESUME,
    ]  # fmt: skip
    claim, resume = seen[3], seen[4]
    assert claim.record is not None and claim.record.kind is RecordKind.RUN
    assert resume.party == f"qemu {claim.record.host}" == f"qemu {claim.host}"


def test_every_killed_agent_is_told_with_its_restart() -> None:
    def of(kind: EventKind, events: tuple[SimEvent, ...]) -> list[str]:
        return [event.party for event in events if event.kind is kind and event.party.startswith("agent")]

    for seed in range(60):
        events = simulate(draw_scenario(seed)).events
        if killed := of(EventKind.CRASH, events):
            assert len(of(EventKind.RESTART, events)) == len(killed) + 3
            return
    raise AssertionError("no seed killed an agent")
