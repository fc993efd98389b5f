"""Evacuation: bounded, never more than there is room for, never to where a VM already is, nearest deadline first."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from architect.model.ids import HostName, VmId
from architect.model.sizes import MIB
from architect.policy.evacuation import (
    DEADLINE_S_MIN,
    MOVES_PER_SOURCE_MAX,
    EmptyingHost,
    Leaver,
    Move,
    Stuck,
    plan_evacuation,
    remaining_s,
)
from architect.policy.placement import HostRoom

HOSTS = [HostName(name) for name in ("aws-1", "aws-2", "gcp-1", "azure-1")]


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[EmptyingHost], list[HostRoom]]:
    """Some hosts empty, all have some room; those that empty are closed."""
    leaving = draw(st.lists(st.sampled_from(HOSTS), unique=True, max_size=3))
    emptying = [
        EmptyingHost(
            name,
            tuple(Leaver(VmId(f"{name}-{number}"), draw(st.integers(1, 64)) * MIB) for number in range(draw(st.integers(0, 6)))),
            draw(st.integers(0, 5)),
            draw(st.none() | st.floats(0, 100)),
        )
        for name in leaving
    ]
    rooms = [HostRoom(name, draw(st.integers(0, 256)) * MIB, "is leaving" if name in leaving else "") for name in HOSTS]
    return emptying, rooms


@given(situations())
def test_a_plan_keeps_all_bounds(situation: tuple[list[EmptyingHost], list[HostRoom]]) -> None:
    emptying, rooms = situation
    plan = plan_evacuation(emptying, rooms)
    sizes = {leaver.vm: leaver.memory_bytes for host in emptying for leaver in host.leavers}
    moves = [step for step in plan if isinstance(step, Move)]
    taken: Counter[str] = Counter()
    for move in moves:
        taken[move.target] += sizes[move.vm]
    free = {room.name: 0 if room.closed else room.memory_free_bytes for room in rooms}
    assert all(size <= free[HostName(host)] for host, size in taken.items())
    under_way = Counter({host.name: host.moves_under_way for host in emptying})
    for host, count in Counter(move.source for move in moves).items():
        assert count + under_way[host] <= MOVES_PER_SOURCE_MAX
    assert len({step.vm for step in plan}) == len(plan)
    assert all(move.source != move.target for move in moves)


@given(situations())
def test_a_vm_is_stuck_only_if_nobody_has_room_for_it(situation: tuple[list[EmptyingHost], list[HostRoom]]) -> None:
    emptying, rooms = situation
    sizes = {leaver.vm: leaver.memory_bytes for host in emptying for leaver in host.leavers}
    free = {room.name: room.memory_free_bytes for room in rooms if not room.closed}
    for step in plan_evacuation(emptying, rooms):
        match step:
            case Move(vm, _, target):
                free[target] -= sizes[vm]
            case Stuck(vm):
                assert all(size < sizes[vm] for size in free.values())


def test_the_host_with_the_nearest_deadline_gets_the_room() -> None:
    late = EmptyingHost(HOSTS[0], (Leaver(VmId("late"), 64 * MIB),), deadline_at_s=100.0)
    soon = EmptyingHost(HOSTS[1], (Leaver(VmId("soon"), 64 * MIB),), deadline_at_s=10.0)
    drain = EmptyingHost(HOSTS[2], (Leaver(VmId("drain"), 64 * MIB),))
    plan = plan_evacuation([drain, late, soon], [HostRoom(HOSTS[3], 64 * MIB)])
    assert plan[0] == Move(VmId("soon"), HOSTS[1], HOSTS[3], 10.0)
    assert [step.vm for step in plan if isinstance(step, Stuck)] == ["late", "drain"]


def test_smallest_first_and_a_refusal_goes_to_the_next_host() -> None:
    leavers = (Leaver(VmId("big"), 200 * MIB), Leaver(VmId("small"), MIB, {HOSTS[1]: "did not take it"}))
    rooms = [HostRoom(HOSTS[1], 300 * MIB), HostRoom(HOSTS[2], 250 * MIB)]
    plan = plan_evacuation([EmptyingHost(HOSTS[0], leavers)], rooms)
    assert plan == (Move(VmId("small"), HOSTS[0], HOSTS[2]), Move(VmId("big"), HOSTS[0], HOSTS[1]))


def test_a_deadline_that_is_over_still_leaves_a_moment() -> None:
    assert remaining_s(None, 5.0) is None
    assert remaining_s(9.0, 5.0) == 4.0
    assert remaining_s(1.0, 5.0) == DEADLINE_S_MIN
