"""What happens in one simulation: moves and faults, drawn from the seed.

A fault strikes at a numbered call of a move (before it is sent, or between its effect and its answer), so that over many seeds
every await of the handover is hit from both sides.
"""

from __future__ import annotations

import random
from enum import StrEnum

import msgspec

from architect.model.handover_state import MigrationMode

HOSTS = ("h1", "h2", "h3")
CALLS_PER_MOVE = 75
RETRIES = 40


class FaultKind(StrEnum):
    """What goes wrong. GIVE_UP is no fault: a user stops the VM while it moves; drawn apart from the others."""

    KILL_SOURCE_AGENT = "kill-source-agent"
    KILL_TARGET_AGENT = "kill-target-agent"
    KILL_CONTROL = "kill-control"
    KILL_SOURCE_QEMU = "kill-source-qemu"
    KILL_TARGET_QEMU = "kill-target-qemu"
    KILL_SOURCE_MEMORY = "kill-source-memory"
    KILL_TARGET_MEMORY = "kill-target-memory"
    CUT_NETWORK = "cut-network"
    RESET_NETWORK = "reset-network"
    STORE_DEAF = "store-deaf"
    STORE_DUMB = "store-dumb"
    EDGE_DEAF = "edge-deaf"
    EDGE_DUMB = "edge-dumb"
    SLOW = "slow"
    STORE_LATE = "store-late"
    EDGE_LATE = "edge-late"
    FREEZE_SOURCE = "freeze-source"
    FREEZE_TARGET = "freeze-target"
    CUT_ONE_WAY = "cut-one-way"
    GIVE_UP = "give-up"


AT_POINT = "point"
"""A fault's phase: its process dies at its `call`th scheduling point of the move."""
POINTS_PER_MOVE = 500
HAVE_POINTS = (FaultKind.KILL_SOURCE_AGENT, FaultKind.KILL_TARGET_AGENT)


class Fault(msgspec.Struct, frozen=True):
    """One fault: at call `call` of move `move`, in phase `before` or `after` its effect (or `AT_POINT`), for `duration_s`."""

    kind: FaultKind
    move: int
    call: int
    phase: str
    duration_s: float
    on_source: bool


class Move(msgspec.Struct, frozen=True):
    """One move that the control plane asks for; to the next or the one after the next host. One that failed is asked for again at
    once, to the same host, at most `retries` times and for some minutes."""

    hop: int
    mode: MigrationMode
    deadline_s: float | None
    verify: bool
    bandwidth_bytes_s: int | None = None
    retries: int = 0


class Scenario(msgspec.Struct, frozen=True):
    """One simulation."""

    seed: int
    pages: int
    blocks: int
    tick_s: float
    writes_per_tick: int
    has_base_everywhere: bool
    moves: tuple[Move, ...]
    faults: tuple[Fault, ...]


def draw_scenario(seed: int) -> Scenario:
    """The scenario of a seed. Every eighth has no fault at all."""
    rng = random.Random(f"scenario {seed}")
    moves = tuple(_draw_move(rng) for _ in range(rng.randint(1, 3)))
    if (limits := random.Random(f"bandwidth {seed}")).random() < 0.2:  # of its own, so that it changes no other seed's scenario
        moves = tuple(msgspec.structs.replace(move, bandwidth_bytes_s=limits.choice([50_000, 500_000])) for move in moves)
    if random.Random(f"retries {seed}").random() < 0.25:
        moves = tuple(msgspec.structs.replace(move, retries=RETRIES) for move in moves)
    fault_count = 0 if seed % 8 == 0 else rng.choice([1, 1, 1, 2, 2, 3])
    return Scenario(
        seed=seed,
        pages=rng.choice([16, 64, 256]),
        blocks=rng.choice([4, 16, 64]),
        tick_s=rng.choice([0.005, 0.02, 0.05]),
        writes_per_tick=rng.choice([1, 4, 12]),
        has_base_everywhere=rng.random() < 0.7,
        moves=moves,
        faults=(
            *(_draw_fault(rng, len(moves)) for _ in range(fault_count)),
            *_draw_give_up(seed, len(moves)),
            *_draw_long_cut(seed, len(moves)),
        ),
    )


def _draw_give_up(seed: int, move_count: int) -> tuple[Fault, ...]:
    rng = random.Random(f"give-up {seed}")
    if seed % 8 == 0 or rng.random() > 0.1:
        return ()
    call = rng.randint(1, CALLS_PER_MOVE)
    return (Fault(FaultKind.GIVE_UP, rng.randrange(move_count), call, rng.choice(["before", "after"]), 0.0, True),)


def _draw_long_cut(seed: int, move_count: int) -> tuple[Fault, ...]:
    """Two hosts that do not reach each other for longer than anybody's patience but that of a post-copy's source."""
    rng = random.Random(f"long cut {seed}")
    if seed % 8 == 0 or rng.random() > 0.15:
        return ()
    kind = rng.choice([FaultKind.CUT_NETWORK, FaultKind.RESET_NETWORK, FaultKind.CUT_ONE_WAY])
    call, duration_s = rng.randint(1, CALLS_PER_MOVE), rng.choice([100.0, 300.0, 500.0])
    return (Fault(kind, rng.randrange(move_count), call, rng.choice(["before", "after"]), duration_s, rng.random() < 0.5),)


def _draw_move(rng: random.Random) -> Move:
    return Move(
        hop=rng.choice([1, 2]),
        mode=rng.choice([MigrationMode.AUTO, MigrationMode.PRECOPY, MigrationMode.POSTCOPY]),
        deadline_s=rng.choice([None, None, 4.0, 10.0, 30.0]),
        verify=rng.random() < 0.2,
    )


def _draw_fault(rng: random.Random, move_count: int) -> Fault:
    kind = rng.choice([kind for kind in FaultKind if kind is not FaultKind.GIVE_UP])
    at_point = kind in HAVE_POINTS and rng.random() < 0.6
    return Fault(
        kind=kind,
        move=rng.randrange(move_count),
        call=rng.randint(1, POINTS_PER_MOVE if at_point else CALLS_PER_MOVE),
        phase=AT_POINT if at_point else rng.choice(["before", "after"]),
        duration_s=rng.choice([0.3, 2.0, 8.0, 45.0]),
        on_source=rng.random() < 0.6,
    )
