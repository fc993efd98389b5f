"""Evacuation: which VMs leave a host now, and where to. Pure; called again whenever something changed.

A host empties because it drains or because a notice takes it away. Every VM on it that is not moving yet gets a target by
`placement`. Hosts with the nearest deadline choose first; memory promised to an earlier move of the same plan counts as taken.

**Order.** All VMs of a host share its uplink and its deadline. If all can be gone by then, those with most to send go first: what
is long must not begin last. If not, those with least go first, which saves the most VMs, and those that could not make it even
alone go last. A VM whose moves keep failing stands behind those that were not tried yet.

**How many at once.** A move has parts that wait (a QEMU that starts, round trips) and parts that work (copying), so one at a time
leaves uplink and CPUs idle, and too many only slow each other down: `moves_at_once` goes by the CPUs of the two ends. While the
host has a deadline, a third move begins only if those under way still make it; among them the link is shared by TCP, and each
decides for itself when it must cut (`migration.cut_plan`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from architect.model.ids import HostName, VmId
from architect.model.sizes import MIB, format_size
from architect.policy.placement import HostRoom, NoRoom, Placed, place

CPUS_ASSUMED = 2
MOVES_PER_CPU = 2
MOVES_MIN = 2
MOVES_MAX = 16
NOTICE_MARGIN_S = 1.5
DEADLINE_S_MIN = 1.0
UPLINK_ASSUMED_BYTES_S = 50 * MIB
MOVE_FIXED_S = 2.0


class Leaver(msgspec.Struct, frozen=True):
    """A VM that has to leave its host. `send_bytes`: what of it exists and must travel (0: not known, all of its memory).

    `refused`: hosts that did not take it a moment ago and are not asked now, and why; `avoided`: those that may be asked again if
    no other host takes it. `failures` counts its moves that failed.
    """

    vm: VmId
    memory_bytes: int
    send_bytes: int = 0
    refused: Mapping[HostName, str] = {}
    avoided: Mapping[HostName, str] = {}
    failures: int = 0

    @property
    def rest_bytes(self) -> int:
        """What must travel, as far as is known."""
        return self.send_bytes or self.memory_bytes


class UnderWay(msgspec.Struct, frozen=True):
    """A move that has begun: where to, and what is left to send."""

    target: HostName
    rest_bytes: int


class EmptyingHost(msgspec.Struct, frozen=True):
    """A host that empties: what is left to move, and the moves under way.

    `deadline_at_s` is when they should have left, wall time; None for a drain. `uplink_bytes_s`: the most that its moves were seen
    to send together; 0 if none was seen.
    """

    name: HostName
    leavers: tuple[Leaver, ...]
    under_way: tuple[UnderWay, ...] = ()
    deadline_at_s: float | None = None
    cpus: int = CPUS_ASSUMED
    uplink_bytes_s: float = 0.0


class Move(msgspec.Struct, frozen=True):
    """Move the VM to `target` now; `deadline_at_s` is when it should have left, wall time."""

    vm: VmId
    source: HostName
    target: HostName
    deadline_at_s: float | None = None


class Stuck(msgspec.Struct, frozen=True):
    """The VM cannot leave now: nobody can take it, or others go first because it could not make it. Tried again at every change."""

    vm: VmId
    source: HostName
    reason: str


def moves_at_once(cpus: int) -> int:
    """How many moves a host with so many CPUs takes part in at a time."""
    return min(max(cpus * MOVES_PER_CPU, MOVES_MIN), MOVES_MAX)


def plan_evacuation(
    emptying: Iterable[EmptyingHost], rooms: Sequence[HostRoom], now_s: float, cpus: Mapping[HostName, int] | None = None
) -> tuple[Move | Stuck, ...]:
    """What to do now for the VMs on hosts that empty.

    :param now_s: wall time, as deadlines are.
    :param cpus: of the hosts that may be targets.
    """
    hosts = sorted(emptying, key=_urgency)
    planner = _Planner(rooms, cpus or {}, hosts)
    for host in hosts:
        planner.plan_host(host, now_s)
    return tuple(planner.plan)


def remaining_s(deadline_at_s: float | None, now_s: float) -> float | None:
    """Seconds that a move has left, never less than `DEADLINE_S_MIN`: late is better than not at all."""
    return None if deadline_at_s is None else max(deadline_at_s - now_s, DEADLINE_S_MIN)


class _Planner:
    """A plan in the making: room and arrivals as they are after what was planned so far."""

    def __init__(self, rooms: Sequence[HostRoom], cpus: Mapping[HostName, int], hosts: Sequence[EmptyingHost]) -> None:
        self.plan: list[Move | Stuck] = []
        self._free = {room.name: room for room in rooms}
        self._cpus = cpus
        self._arrivals = Counter(move.target for host in hosts for move in host.under_way)

    def plan_host(self, host: EmptyingHost, now_s: float) -> None:
        """Moves for as many of its VMs as may begin, in their order; the reason for those that nobody can take."""
        left_s = None if host.deadline_at_s is None else host.deadline_at_s - now_s
        rate = host.uplink_bytes_s or UPLINK_ASSUMED_BYTES_S
        slots = moves_at_once(host.cpus) - len(host.under_way)
        sending = sum(move.rest_bytes for move in host.under_way)
        begun = len(host.under_way)
        for leaver in _line_up(host, left_s, rate):
            placement = self._place(host, leaver)
            if isinstance(placement, NoRoom):
                self.plan.append(Stuck(leaver.vm, host.name, placement.reason))
                continue
            if placement is None or slots <= 0:
                continue
            if begun >= MOVES_MIN and left_s is not None and not _leaves_time(sending + leaver.rest_bytes, rate, left_s):
                if not _makes_it_alone(leaver, rate, left_s):
                    self.plan.append(Stuck(leaver.vm, host.name, _too_much(leaver, rate, left_s)))
                continue
            self._promise(leaver, placement.host)
            self.plan.append(Move(leaver.vm, host.name, placement.host, host.deadline_at_s))
            slots, sending, begun = slots - 1, sending + leaver.rest_bytes, begun + 1

    def _place(self, host: EmptyingHost, leaver: Leaver) -> Placed | NoRoom | None:
        """The target, or why there is none; None if some have room, but take part in enough moves now."""
        others = [room for room in self._free.values() if room.name != host.name]
        busy = {room.name: "is busy" for room in others if self._is_busy(room.name)}
        avoided = {**leaver.avoided, **leaver.refused}
        for refused in (avoided, leaver.refused):
            placement = place(leaver.memory_bytes, others, refused)
            if isinstance(placement, Placed):
                found = place(leaver.memory_bytes, others, {**refused, **busy})
                return found if isinstance(found, Placed) else None
        return placement

    def _is_busy(self, target: HostName) -> bool:
        return self._arrivals[target] >= moves_at_once(self._cpus.get(target, CPUS_ASSUMED))

    def _promise(self, leaver: Leaver, target: HostName) -> None:
        room = self._free[target]
        self._free[target] = msgspec.structs.replace(room, memory_free_bytes=room.memory_free_bytes - leaver.memory_bytes)
        self._arrivals[target] += 1


def _line_up(host: EmptyingHost, left_s: float | None, rate: float) -> list[Leaver]:
    """The host's VMs, those that go first at the head."""
    everything = sum(leaver.rest_bytes for leaver in host.leavers) + sum(move.rest_bytes for move in host.under_way)
    if left_s is None or _leaves_time(everything, rate, left_s):
        return sorted(host.leavers, key=lambda leaver: (leaver.failures, -leaver.rest_bytes, leaver.vm))

    def saves_most(leaver: Leaver) -> tuple[bool, int, int, str]:
        return (not _makes_it_alone(leaver, rate, left_s), leaver.failures, leaver.rest_bytes, leaver.vm)

    return sorted(host.leavers, key=saves_most)


def _leaves_time(size_bytes: int, rate: float, left_s: float) -> bool:
    return size_bytes / rate + MOVE_FIXED_S <= left_s


def _makes_it_alone(leaver: Leaver, rate: float, left_s: float) -> bool:
    return _leaves_time(leaver.rest_bytes, rate, left_s)


def _too_much(leaver: Leaver, rate: float, left_s: float) -> str:
    need_s = leaver.rest_bytes / rate + MOVE_FIXED_S
    size = format_size(leaver.rest_bytes)
    return f"{size} need {need_s:.0f} s at {format_size(rate)}/s, its host goes in {left_s:.0f} s: others go first"


def _urgency(host: EmptyingHost) -> tuple[float, str]:
    return (float("inf") if host.deadline_at_s is None else host.deadline_at_s, host.name)
