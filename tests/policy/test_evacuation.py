"""Evacuation: bounded, never more than there is room for, never to where a VM already is, nearest deadline first."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from architect.model.ids import HostName, VmId
from architect.model.sizes import MIB
from architect.policy.evacuation import (
    CPUS_ASSUMED,
    DEADLINE_S_MIN,
    MOVES_MAX,
    MOVES_MIN,
    EmptyingHost,
    Leaver,
    Move,
    Stuck,
    UnderWay,
    moves_at_once,
    plan_evacuation,
    remaining_s,
)
from architect.policy.placement import HostRoom

NOW_S = 0.0
HOSTS = [HostName(name) for name in ("aws-1", "aws-2", "gcp-1", "azure-1")]


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[EmptyingHost], list[HostRoom]]:
    """Some hosts empty, all have some room; those that empty are closed."""
    leaving = draw(st.lists(st.sampled_from(HOSTS), unique=True, max_size=3))
    emptying = [
        EmptyingHost(
            name,
            tuple(Leaver(VmId(f"{name}-{number}"), draw(st.integers(1, 64)) * MIB) for number in range(draw(st.integers(0, 6)))),
            tuple(UnderWay(draw(st.sampled_from(HOSTS)), MIB) for _ in range(draw(st.integers(0, 5)))),
            draw(st.none() | st.floats(0, 100)),
            draw(st.integers(1, 4)),
        )
        for name in leaving
    ]
    rooms = [HostRoom(name, draw(st.integers(0, 256)) * MIB, "is leaving" if name in leaving else "") for name in HOSTS]
    return emptying, rooms


@given(situations())
def test_a_plan_keeps_all_bounds(situation: tuple[list[EmptyingHost], list[HostRoom]]) -> None:
    emptying, rooms = situation
    plan = plan_evacuation(emptying, rooms, NOW_S)
    sizes = {leaver.vm: leaver.memory_bytes for host in emptying for leaver in host.leavers}
    moves = [step for step in plan if isinstance(step, Move)]
    taken: Counter[str] = Counter()
    for move in moves:
        taken[move.target] += sizes[move.vm]
    free = {room.name: 0 if room.closed else room.memory_free_bytes for room in rooms}
    assert all(size <= free[HostName(host)] for host, size in taken.items())
    sources = {host.name: host for host in emptying}
    for source, count in Counter(move.source for move in moves).items():
        assert count + len(sources[source].under_way) <= moves_at_once(sources[source].cpus)
    arrivals = Counter(move.target for host in emptying for move in host.under_way)
    for target, count in Counter(move.target for move in moves).items():
        assert count + arrivals[target] <= max(moves_at_once(CPUS_ASSUMED), arrivals[target])
    assert len({step.vm for step in plan}) == len(plan)
    assert all(move.source != move.target for move in moves)


@given(situations())
def test_a_vm_is_stuck_only_if_nobody_has_room_or_others_go_first(situation: tuple[list[EmptyingHost], list[HostRoom]]) -> None:
    emptying, rooms = situation
    sizes = {leaver.vm: leaver.memory_bytes for host in emptying for leaver in host.leavers}
    free = {room.name: room.memory_free_bytes for room in rooms if not room.closed}
    for step in plan_evacuation(emptying, rooms, NOW_S):
        match step:
            case Move(vm, _, target):
                free[target] -= sizes[vm]
            case Stuck(vm, _, reason):
                assert all(size < sizes[vm] for size in free.values()) or "others go first" in reason


def hurried(*sizes_mib: int, left_s: float, mib_s: int = 10, under_way: int = 0, cpus: int = 2) -> list[Move | Stuck]:
    """The plan for one host that goes in `left_s`, with room enough elsewhere."""
    leavers = tuple(Leaver(VmId(f"vm-{size}"), 1024 * MIB, size * MIB) for size in sizes_mib)
    going = tuple(UnderWay(HOSTS[1], 50 * MIB) for _ in range(under_way))
    host = EmptyingHost(HOSTS[0], leavers, going, NOW_S + left_s, cpus, mib_s * MIB)
    rooms = [HostRoom(name, 64 * 1024 * MIB) for name in HOSTS[1:]]
    return list(plan_evacuation([host], rooms, NOW_S, dict.fromkeys(HOSTS, 8)))


def moved(plan: list[Move | Stuck]) -> list[str]:
    return [step.vm for step in plan if isinstance(step, Move)]


def test_with_time_for_all_the_longest_goes_first() -> None:
    assert moved(hurried(10, 30, 20, left_s=30)) == ["vm-30", "vm-20", "vm-10"]


def test_without_time_for_all_the_smallest_go_first_and_what_cannot_make_it_alone_goes_last_and_says_so() -> None:
    plan = hurried(100, 500, 20, 90, left_s=15)
    assert moved(plan) == ["vm-20", "vm-90"]
    (stuck,) = [step for step in plan if isinstance(step, Stuck)]
    assert (stuck.vm, stuck.reason) == ("vm-500", "500.0 MiB need 52 s at 10.0 MiB/s, its host goes in 15 s: others go first")


def test_what_cannot_make_it_alone_is_tried_when_nothing_else_is_left() -> None:
    assert moved(hurried(500, left_s=15)) == ["vm-500"]


def test_two_moves_may_always_run_side_by_side_and_a_third_only_if_those_still_make_it() -> None:
    assert moved(hurried(100, left_s=15, under_way=1)) == ["vm-100"]
    assert moved(hurried(100, left_s=15, under_way=2)) == []
    assert moved(hurried(100, left_s=30, under_way=2)) == ["vm-100"]


def test_moves_at_once_go_by_the_cpus_of_both_ends() -> None:
    assert (moves_at_once(1), moves_at_once(2), moves_at_once(64)) == (MOVES_MIN, 4, MOVES_MAX)
    assert len(moved(hurried(*range(1, 20), left_s=1000, cpus=4))) == 8
    leavers = tuple(Leaver(VmId(f"vm-{number}"), MIB) for number in range(9))
    plan = plan_evacuation([EmptyingHost(HOSTS[0], leavers, cpus=64)], [HostRoom(HOSTS[1], 64 * MIB)], NOW_S, {HOSTS[1]: 2})
    assert len(plan) == 4, "the only target takes four at a time, the others wait and are not stuck"


def test_a_host_that_refused_is_asked_again_only_if_no_other_one_takes_the_vm() -> None:
    rooms = [HostRoom(HOSTS[1], 300 * MIB), HostRoom(HOSTS[2], 250 * MIB)]

    def target(*avoided: HostName, size_mib: int = 1) -> Move | Stuck:
        leaver = Leaver(VmId("vm"), size_mib * MIB, avoided=dict.fromkeys(avoided, "did not take it"))
        (step,) = plan_evacuation([EmptyingHost(HOSTS[0], (leaver,))], rooms, NOW_S)
        return step

    assert target(HOSTS[1]) == Move(VmId("vm"), HOSTS[0], HOSTS[2])
    assert target(HOSTS[1], size_mib=260) == Move(VmId("vm"), HOSTS[0], HOSTS[1])
    assert target(HOSTS[1], HOSTS[2]) == Move(VmId("vm"), HOSTS[0], HOSTS[1])


def test_a_vm_whose_moves_fail_does_not_hold_up_the_others() -> None:
    leavers = (Leaver(VmId("cursed"), 100 * MIB, failures=2), Leaver(VmId("fresh"), MIB))
    plan = plan_evacuation([EmptyingHost(HOSTS[0], leavers)], [HostRoom(HOSTS[1], 300 * MIB)], NOW_S)
    assert [step.vm for step in plan] == ["fresh", "cursed"]


def test_the_host_with_the_nearest_deadline_gets_the_room() -> None:
    late = EmptyingHost(HOSTS[0], (Leaver(VmId("late"), 64 * MIB),), deadline_at_s=100.0)
    soon = EmptyingHost(HOSTS[1], (Leaver(VmId("soon"), 64 * MIB),), deadline_at_s=10.0)
    drain = EmptyingHost(HOSTS[2], (Leaver(VmId("drain"), 64 * MIB),))
    plan = plan_evacuation([drain, late, soon], [HostRoom(HOSTS[3], 64 * MIB)], NOW_S)
    assert plan[0] == Move(VmId("soon"), HOSTS[1], HOSTS[3], 10.0)
    assert [step.vm for step in plan if isinstance(step, Stuck)] == ["late", "drain"]


def test_a_refusal_goes_to_the_next_host() -> None:
    leavers = (Leaver(VmId("big"), 200 * MIB), Leaver(VmId("small"), MIB, refused={HOSTS[1]: "did not take it"}))
    rooms = [HostRoom(HOSTS[1], 300 * MIB), HostRoom(HOSTS[2], 250 * MIB)]
    plan = plan_evacuation([EmptyingHost(HOSTS[0], leavers)], rooms, NOW_S)
    assert plan == (Move(VmId("big"), HOSTS[0], HOSTS[1]), Move(VmId("small"), HOSTS[0], HOSTS[2]))


def test_a_deadline_that_is_over_still_leaves_a_moment() -> None:
    assert remaining_s(None, 5.0) is None
    assert remaining_s(9.0, 5.0) == 4.0
    assert remaining_s(1.0, 5.0) == DEADLINE_S_MIN
