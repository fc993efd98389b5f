"""What happens to a simulated fleet: its hosts, VMs and incidents, as one value. A seed draws it; a test may write it down.

Incidents strike at a time; those that kill a process strike `points` scheduling points of that process later, so that over many
seeds processes die at every await.
"""

from __future__ import annotations

import random
from enum import StrEnum

import msgspec

from architect.model.handover_state import MigrationMode
from architect.model.sizes import MIB
from architect.testing.sim_machine import GuestShape

SERVICES = ("control", "edge", "store")


class IncidentKind(StrEnum):
    """What happens. PREEMPT, VANISH: with and without notice. LATE: requests take effect long after they were sent."""

    MOVE = "move"
    DRAIN = "drain"
    PREEMPT = "preempt"
    VANISH = "vanish"
    FREEZE = "freeze"
    CUT = "cut"
    CUT_ONE_WAY = "cut-one-way"
    RESET = "reset"
    SLOW = "slow"
    CRASH_AGENT = "crash-agent"
    CRASH_CONTROL = "crash-control"
    CRASH_EDGE = "crash-edge"
    CRASH_QEMU = "crash-qemu"
    CRASH_MEMORY = "crash-memory"
    STORE_DEAF = "store-deaf"
    STORE_DUMB = "store-dumb"
    STORE_LATE = "store-late"
    EDGE_DEAF = "edge-deaf"
    EDGE_DUMB = "edge-dumb"
    EDGE_LATE = "edge-late"


class Incident(msgspec.Struct, frozen=True, omit_defaults=True):
    """One incident at `at_s`: to host (or service) `place`; `other` is the far end of a cut, or where a VM is to move.

    `duration_s` is how long it lasts; for PREEMPT the notice. `vm` is an index into the fleet's VMs.
    """

    kind: IncidentKind
    at_s: float
    place: str = ""
    other: str = ""
    duration_s: float = 0.0
    points: int = 0
    vm: int = 0
    mode: MigrationMode = MigrationMode.AUTO


class FleetVm(msgspec.Struct, frozen=True):
    """One VM: on which host it starts, and its guest."""

    host: str
    guest: GuestShape


class Fleet(msgspec.Struct, frozen=True):
    """One simulation of a fleet. `link_bytes_per_s` is what each host's link carries."""

    seed: int
    hosts: tuple[str, ...]
    vms: tuple[FleetVm, ...]
    incidents: tuple[Incident, ...]
    host_memory_bytes: int = 512 * MIB
    link_bytes_per_s: float = 100e6


def draw_fleet(seed: int, host_count: int | None = None, vm_count: int | None = None) -> Fleet:
    """The fleet of a seed, of a size that the seed chooses unless it is given."""
    rng = random.Random(f"fleet {seed}")
    sizes = [(4, 8), (4, 16), (6, 24), (8, 40)] if rng.random() < 0.85 else [(12, 60), (16, 100), (24, 200)]
    hosts_drawn, vms_drawn = rng.choice(sizes)
    hosts = tuple(f"h{index + 1}" for index in range(host_count or hosts_drawn))
    vms = tuple(FleetVm(hosts[index % len(hosts)], _draw_guest(rng)) for index in range(vm_count or vms_drawn))
    count = 0 if rng.random() < 0.05 else rng.randint(1, 3 + len(hosts) // 2)
    leaving = rng.randint(0 if count else 1, max(1, len(hosts) // 3))
    incidents = [_draw_leaving(rng, hosts) for _ in range(leaving)]
    incidents += [_draw_move(rng, hosts, len(vms)) for _ in range(rng.randint(0, 6))]
    incidents += [_draw_trouble(rng, hosts, len(vms)) for _ in range(count)]
    per_host = sum(vm.guest.cells * vm.guest.cell_bytes for vm in vms) / len(hosts)
    memory_bytes = int(per_host * rng.choice([1.6, 2.5, 4.0]) / MIB + 16) * MIB
    return Fleet(seed, hosts, vms, tuple(sorted(incidents, key=lambda one: one.at_s)), memory_bytes, rng.choice([30e6, 100e6]))


def _draw_guest(rng: random.Random) -> GuestShape:
    cells = rng.choice([16, 32, 64])
    return GuestShape(cells, rng.choice([4, 8, 16]), rng.choice([0.02, 0.05, 0.2]), rng.choice([1, 2, 4]), cell_bytes=65536)


def _draw_leaving(rng: random.Random, hosts: tuple[str, ...]) -> Incident:
    """A host that is to be emptied. The first host stays, so that there is always somewhere to go."""
    host, at_s = rng.choice(hosts[1:]), round(rng.uniform(1.0, 12.0), 2)
    kind = rng.choice([IncidentKind.PREEMPT, IncidentKind.PREEMPT, IncidentKind.DRAIN])
    notice_s = rng.choice([8.0, 15.0, 30.0, 60.0]) if kind is IncidentKind.PREEMPT else 0.0
    return Incident(kind, at_s, host, duration_s=notice_s)


def _draw_move(rng: random.Random, hosts: tuple[str, ...], vm_count: int) -> Incident:
    modes = [MigrationMode.AUTO, MigrationMode.PRECOPY, MigrationMode.POSTCOPY]
    at_s = round(rng.uniform(1.0, 15.0), 2)
    return Incident(IncidentKind.MOVE, at_s, other=rng.choice(hosts), vm=rng.randrange(vm_count), mode=rng.choice(modes))


def _draw_trouble(rng: random.Random, hosts: tuple[str, ...], vm_count: int) -> Incident:
    skipped = (IncidentKind.MOVE, IncidentKind.DRAIN, IncidentKind.PREEMPT)
    kind = rng.choice([kind for kind in IncidentKind if kind not in skipped])
    at_s, duration_s, host = round(rng.uniform(1.0, 16.0), 3), rng.choice([0.3, 2.0, 10.0, 30.0]), rng.choice(hosts)
    points = rng.choice([0, rng.randint(0, 60), rng.randint(0, 600)])
    match kind:
        case IncidentKind.VANISH:
            return Incident(kind, at_s, rng.choice(hosts[1:]))
        case IncidentKind.FREEZE:
            return Incident(kind, at_s, rng.choice([*hosts, *hosts, "control"]), duration_s=duration_s)
        case IncidentKind.CUT | IncidentKind.CUT_ONE_WAY | IncidentKind.RESET:
            other = rng.choice([one for one in (*hosts, *SERVICES) if one != host])
            return Incident(kind, at_s, host, other, duration_s)
        case IncidentKind.CRASH_QEMU | IncidentKind.CRASH_MEMORY:
            return Incident(kind, at_s, vm=rng.randrange(vm_count))
        case IncidentKind.CRASH_AGENT:
            return Incident(kind, at_s, host, points=points)
        case IncidentKind.CRASH_CONTROL | IncidentKind.CRASH_EDGE:
            return Incident(kind, at_s, points=points)
        case _:
            return Incident(kind, at_s, host, duration_s=duration_s)
