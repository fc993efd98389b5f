"""Evacuation: which VMs leave a host now, and where to. Pure; called again whenever something changed.

A host empties because it drains or because a notice takes it away. Every VM on it that is not moving yet gets a target by
`placement`, the smallest first: with little time left, the order saves the most VMs. At most `MOVES_PER_SOURCE_MAX` moves leave one
host at once, since they share its uplink. Hosts with the nearest deadline choose first. Memory promised to an earlier move of the
same plan counts as taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from architect.model.ids import HostName, VmId
from architect.policy.placement import HostRoom, Placed, place

MOVES_PER_SOURCE_MAX = 4
NOTICE_MARGIN_S = 1.5
DEADLINE_S_MIN = 1.0


class Leaver(msgspec.Struct, frozen=True):
    """A VM that has to leave its host. `refused`: hosts that did not take it a moment ago, and why."""

    vm: VmId
    memory_bytes: int
    refused: Mapping[HostName, str] = {}


class EmptyingHost(msgspec.Struct, frozen=True):
    """A host that empties: what is left to move, how many moves are under way.

    `deadline_at_s` is when they should have left, wall time; None for a drain.
    """

    name: HostName
    leavers: tuple[Leaver, ...]
    moves_under_way: int = 0
    deadline_at_s: float | None = None


class Move(msgspec.Struct, frozen=True):
    """Move the VM to `target` now; `deadline_at_s` is when it should have left, wall time."""

    vm: VmId
    source: HostName
    target: HostName
    deadline_at_s: float | None = None


class Stuck(msgspec.Struct, frozen=True):
    """Nobody can take the VM now; it is tried again when something changes."""

    vm: VmId
    source: HostName
    reason: str


def plan_evacuation(emptying: Iterable[EmptyingHost], rooms: Sequence[HostRoom]) -> tuple[Move | Stuck, ...]:
    """What to do now for the VMs on hosts that empty."""
    free = {room.name: room for room in rooms}
    plan: list[Move | Stuck] = []
    for host in sorted(emptying, key=_urgency):
        slots = MOVES_PER_SOURCE_MAX - host.moves_under_way
        for leaver in sorted(host.leavers, key=lambda leaver: (leaver.memory_bytes, leaver.vm)):
            if slots <= 0:
                break
            others = [room for room in free.values() if room.name != host.name]
            match place(leaver.memory_bytes, others, leaver.refused):
                case Placed(target):
                    room = free[target]
                    free[target] = msgspec.structs.replace(room, memory_free_bytes=room.memory_free_bytes - leaver.memory_bytes)
                    plan.append(Move(leaver.vm, host.name, target, host.deadline_at_s))
                    slots -= 1
                case refusal:
                    plan.append(Stuck(leaver.vm, host.name, refusal.reason))
    return tuple(plan)


def remaining_s(deadline_at_s: float | None, now_s: float) -> float | None:
    """Seconds that a move has left, never less than `DEADLINE_S_MIN`: late is better than not at all."""
    return None if deadline_at_s is None else max(deadline_at_s - now_s, DEADLINE_S_MIN)


def _urgency(host: EmptyingHost) -> tuple[float, str]:
    return (float("inf") if host.deadline_at_s is None else host.deadline_at_s, host.name)
