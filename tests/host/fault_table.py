"""The fault matrix as values: its columns (every sub-step of a handover), its rows (victims), and what must come of each cell.

A column is a hold point (`agent.hold_points`, made from the step tables) and the way to get a handover there. Columns of one
*stage* share their expectations: what has been handed over decides what a fault costs. `expected` is the only judge of a cell;
docs/operations/fault-matrix.md shows the same table, and a test compares the two.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from architect.agent.hold_points import PLANNED
from architect.migration.source_steps import HANDOVER_STATE as SOURCE_STATE
from architect.migration.source_steps import SourceStep
from architect.migration.target_engine import HANDOVER_STATE as TARGET_STATE
from architect.migration.target_engine import TargetStep
from architect.model.handover_state import HandoverState


class Stage(StrEnum):
    """How much of the VM has been handed over, and so what there is to lose."""

    OPENING = "opening"  # the target has nothing
    STARTING = "starting"  # the target makes room and a machine
    COPYING = "copying"  # the VM runs at the source, its memory and disk follow
    STOPPED = "stopped"  # the VM stands at the source; the target has no device state
    TAKING = "taking"  # the target has the cut; nobody owns term + 1
    OWNED = "owned"  # the record is the target's
    FILLING = "filling"  # the VM runs at the target, pages and blocks are missing
    UNDOING = "undoing"  # the target's machine has died before: the move is undone


class Need(StrEnum):
    """What has to be done so that a handover comes to its column."""

    NOTHING = "nothing"
    STIRRED = "the guest dirties memory fast"
    FILLED = "the guest has written much to its disk"
    NO_BASE = "the target lacks the base disk"
    TARGET_DIES = "the target's QEMU is killed at target-apply"
    CLAIMED_TARGET_DIES = "the target's QEMU is killed at target-resume"
    CONNECTION_BREAKS = "the agents' connection breaks at source-serve"
    ANSWER_IS_LOST = "the agents' connection breaks at target-resume"


KILLED_AT = {Need.TARGET_DIES: "target-apply", Need.CLAIMED_TARGET_DIES: "target-resume"}
BROKEN_AT = {Need.CONNECTION_BREAKS: "source-serve", Need.ANSWER_IS_LOST: "target-resume"}


class Victim(StrEnum):
    """Who is hit."""

    SOURCE_QEMU = "source QEMU"
    TARGET_QEMU = "target QEMU"
    SOURCE_MEMORY = "source memory process"
    TARGET_MEMORY = "target memory process"
    SOURCE_AGENT = "source agent"
    TARGET_AGENT = "target agent"
    SOURCE_PAIR = "source agent and memory process"
    TARGET_PAIR = "target agent and memory process"
    CONTROL = "control plane"
    EDGE = "edge agent"
    LINK_CUT = "link cut"
    LINK_CUT_LONG = "link cut for 70 s"
    LINK_SLOW = "link slow"
    LINK_CORRUPT = "link corrupting"
    STORE_AWAY = "ownership store unreachable"
    DISK_FULL = "target's disk full"
    SOURCE_FROZEN = "source host frozen 10 s"
    TARGET_FROZEN = "target host frozen 10 s"


class Outcome(StrEnum):
    """What may come of a cell."""

    AT_SOURCE = "runs on at the source"
    AT_TARGET = "runs on at the target"
    LOST = "lost, by name"


S, T, L = Outcome.AT_SOURCE, Outcome.AT_TARGET, Outcome.LOST


class Column(msgspec.Struct, frozen=True):
    """One sub-step, and how a handover gets there."""

    point: str
    stage: Stage
    mode: str = "precopy"
    verify: bool = False
    need: Need = Need.NOTHING

    @property
    def name(self) -> str:
        """The column's name: the hold point, and the mode where it is in both."""
        return f"{self.point} ({self.mode})" if (self.point, self.mode) in _TWINS else self.point

    @property
    def phase(self) -> HandoverState:
        """The state that users see."""
        if self.point == PLANNED:
            return HandoverState.PLANNED
        side, _, step = self.point.partition("-")
        if side == "source":
            return SOURCE_STATE.get(SourceStep(step), HandoverState.SWITCHOVER)
        return TARGET_STATE.get(TargetStep(step), HandoverState.SWITCHOVER)

    @property
    def is_at_source(self) -> bool:
        """Whether the source's agent is the one that waits there."""
        return self.point.startswith("source-")


def _columns(stage: Stage, *points: str, mode: str = "precopy", verify: bool = False, need: Need = Need.NOTHING) -> list[Column]:
    return [Column(point, stage, mode, verify, need) for point in points]


_MOVING = ("hook", "hold", "steer", "settle", "forward", "drain", "pause")
_IN_BOTH_MODES = (
    _columns(Stage.COPYING, *(f"source-{step}" for step in _MOVING))
    + _columns(Stage.STOPPED, "source-last-round", "source-cut", "source-commit")
    + _columns(Stage.TAKING, "target-started", "target-apply", "target-load", "target-claim")
    + _columns(Stage.OWNED, "target-resume", "source-release", "source-destroy")
)
_POSTCOPY_TWINS = [msgspec.structs.replace(column, mode="postcopy") for column in _IN_BOTH_MODES]
_TWINS = {(column.point, column.mode) for column in _POSTCOPY_TWINS}

COLUMNS: tuple[Column, ...] = (
    *_columns(Stage.OPENING, PLANNED, "source-connect", "source-prepare"),
    *_columns(Stage.STARTING, "source-base", need=Need.NO_BASE),
    *_columns(Stage.STARTING, "source-start", "target-reserved"),
    *_columns(Stage.COPYING, "source-open", "source-bulk"),
    *_columns(Stage.COPYING, "source-round", need=Need.STIRRED),
    *_columns(Stage.COPYING, "source-wait", need=Need.FILLED),
    *_IN_BOTH_MODES,
    *_POSTCOPY_TWINS,
    *_columns(Stage.STOPPED, "source-verify", verify=True),
    *_columns(Stage.TAKING, "target-verify", verify=True),
    *_columns(Stage.TAKING, "target-attach", mode="postcopy"),
    *_columns(Stage.OWNED, "source-quiet"),
    *_columns(Stage.OWNED, "source-confirm", need=Need.ANSWER_IS_LOST),
    *_columns(Stage.FILLING, "source-serve", "target-fill", mode="postcopy"),
    *_columns(Stage.FILLING, "source-ask", mode="postcopy", need=Need.CONNECTION_BREAKS),
    *_columns(Stage.UNDOING, "source-resolve", "source-undo", "target-undo", need=Need.TARGET_DIES),
    *_columns(Stage.UNDOING, "target-hand-back", need=Need.CLAIMED_TARGET_DIES),
)

_Row = dict[Stage, frozenset[Outcome]]


def _row(opening: str, starting: str, copying: str, stopped: str, taking: str, owned: str, filling: str, undoing: str) -> _Row:
    """A row of the table: for each stage the outcomes that are allowed, by their first letters; "" where there is no victim."""
    letters = {"s": S, "t": T, "l": L}
    cells = (opening, starting, copying, stopped, taking, owned, filling, undoing)
    return {stage: frozenset(letters[letter] for letter in cell) for stage, cell in zip(Stage, cells, strict=True)}


EXPECTED: dict[Victim, _Row] = {
    #                          opening starting copying stopped taking owned filling undoing
    Victim.SOURCE_QEMU: _row("l", "l", "l", "l", "t", "t", "t", "l"),
    Victim.TARGET_QEMU: _row("", "s", "s", "s", "s", "l", "l", ""),
    Victim.SOURCE_MEMORY: _row("t", "st", "s", "s", "t", "t", "t", "s"),
    Victim.TARGET_MEMORY: _row("", "s", "s", "s", "st", "t", "t", ""),
    Victim.SOURCE_AGENT: _row("s", "s", "s", "s", "st", "t", "t", "s"),
    Victim.TARGET_AGENT: _row("s", "s", "s", "s", "s", "t", "t", "s"),
    Victim.SOURCE_PAIR: _row("s", "s", "s", "s", "st", "t", "t", "s"),
    Victim.TARGET_PAIR: _row("", "", "s", "s", "s", "t", "t", ""),
    Victim.CONTROL: _row("t", "t", "t", "t", "t", "t", "t", "s"),
    Victim.EDGE: _row("t", "t", "st", "t", "t", "t", "t", "s"),  # a steer that finds no edge fails the move
    Victim.LINK_CUT: _row("s", "s", "s", "s", "st", "t", "t", "s"),
    # Longer than any connection lasts, and only where that makes a difference: a VM that runs, or is about to, lacks something.
    Victim.LINK_CUT_LONG: _row("", "", "", "", "", "", "t", ""),
    # Pre-copy that was asked for by name is given up if the guest writes its disk as fast as the link carries it.
    Victim.LINK_SLOW: _row("st", "st", "st", "t", "t", "t", "t", "s"),
    Victim.LINK_CORRUPT: _row("st", "st", "st", "st", "st", "t", "t", "s"),
    Victim.STORE_AWAY: _row("st", "t", "t", "t", "t", "t", "t", "s"),
    Victim.DISK_FULL: _row("s", "s", "st", "st", "st", "t", "t", "s"),
    Victim.SOURCE_FROZEN: _row("st", "st", "st", "st", "st", "t", "t", "s"),
    Victim.TARGET_FROZEN: _row("s", "s", "s", "s", "st", "t", "t", "s"),
}

POSTCOPY: dict[Victim, _Row] = {
    # Before the record a broken stream may fail the move, or be taken up. After it QEMU refuses to run a guest whose disk it cannot
    # open then: it never ran, and is given back.
    **{
        victim: {Stage.TAKING: frozenset({S, T}), Stage.OWNED: frozenset({S, T})}
        for victim in (Victim.SOURCE_MEMORY, Victim.SOURCE_PAIR, Victim.TARGET_MEMORY, Victim.TARGET_PAIR, Victim.LINK_CORRUPT)
    },
    Victim.LINK_CUT_LONG: {Stage.OWNED: frozenset({T})},
    Victim.LINK_SLOW: {Stage.COPYING: frozenset({T})},
}
"""Where post-copy mode differs: the stage's expectation there."""

EXCEPTIONS: dict[tuple[Victim, str], frozenset[Outcome]] = {
    # Its last word is said: the state is saved, memory and disk are in the memory process and in a file.
    (Victim.SOURCE_QEMU, "source-verify"): frozenset({T}),
    (Victim.SOURCE_QEMU, "source-commit"): frozenset({T}),
    (Victim.SOURCE_QEMU, "source-commit (postcopy)"): frozenset({T}),
    # QEMU refuses to run a guest whose disk it cannot open, when its connection has broken: it never ran, and is given back.
    (Victim.LINK_CUT_LONG, "target-resume (postcopy)"): frozenset({S, T}),
    # Nothing has been sent by it: the one that takes its place in time is asked instead.
    (Victim.SOURCE_MEMORY, "source-open"): frozenset({S, T}),
    # Its last page has been acknowledged: the target judges what it has by its root.
    (Victim.SOURCE_MEMORY, "source-commit"): frozenset({T}),
    # The cut waits longer for its answer than the host stands; what is asked before it does not.
    (Victim.TARGET_FROZEN, "source-cut"): frozenset({S, T}),
    (Victim.TARGET_FROZEN, "source-commit"): frozenset({S, T}),
    (Victim.TARGET_FROZEN, "source-verify"): frozenset({S, T}),
    # It never ran, and is given back.
    (Victim.TARGET_QEMU, "target-resume"): frozenset({S}),
    (Victim.TARGET_QEMU, "target-resume (postcopy)"): frozenset({S}),
    # Nothing has begun: an agent that is back before its silence counts is asked once more, and moves the VM.
    (Victim.SOURCE_AGENT, "source-planned"): frozenset({S, T}),
    (Victim.SOURCE_PAIR, "source-planned"): frozenset({S, T}),
}
"""Cells that differ from their stage's, by victim and column name; each with its reason beside it."""


def expected(victim: Victim, column: Column) -> frozenset[Outcome]:
    """The outcomes that a cell allows; none where the victim does not exist."""
    row = EXPECTED[victim]
    if column.mode == "postcopy":
        row = {**row, **POSTCOPY.get(victim, {})}
    return EXCEPTIONS.get((victim, column.name), row[column.stage])


def cells(victim: Victim) -> list[Column]:
    """The columns in which the victim exists."""
    return [column for column in COLUMNS if expected(victim, column)]


PHASES = tuple(
    dict.fromkeys(column.phase for column in sorted(COLUMNS, key=lambda column: list(HandoverState).index(column.phase)))
)

TOGETHER = {
    Victim.SOURCE_QEMU: "AT_ITS_SOURCE",
    Victim.SOURCE_MEMORY: "AT_ITS_SOURCE",
    Victim.TARGET_QEMU: "AT_ITS_TARGET",
    Victim.TARGET_MEMORY: "AT_ITS_TARGET",
}
"""Victims that belong to one VM, so that several can be struck at once."""

NAMED = {
    Victim.SOURCE_QEMU: ("QEMU", True),
    Victim.TARGET_QEMU: ("QEMU", False),
    Victim.SOURCE_MEMORY: ("the memory process", True),
    Victim.TARGET_MEMORY: ("the memory process", False),
}
"""Victims whose end is the reason of what comes of it, in these words; and whether they are at the source."""

PARTS = (
    (Stage.OPENING, Stage.STARTING, Stage.COPYING),
    (Stage.STOPPED, Stage.TAKING, Stage.UNDOING),
    (Stage.OWNED, Stage.FILLING),
)
"""A move in three: the guest runs at the source, it stands, the target has it."""

SOAKED = frozenset({Victim.LINK_CUT_LONG})
"""Victims that take too long for `make test`."""

_SLOW = frozenset({Need.FILLED, Need.NO_BASE, Need.STIRRED, Need.CONNECTION_BREAKS, Need.ANSWER_IS_LOST})


class Strike(msgspec.Struct, frozen=True):
    """What happens at once: each victim is hit in the columns beside it, a VM for each."""

    name: str
    cells: tuple[tuple[Victim, Column], ...]


def covering() -> list[Strike]:
    """Few cells, pairwise in victims and `PARTS` of a move.

    Each victim takes, of each part, the column that was taken least until then, of the stage that was.
    """
    taken = {column.name: 0 for column in COLUMNS}
    stages = dict.fromkeys(Stage, 0)
    plan: dict[str, list[tuple[Victim, Column]]] = {}
    for victim in sorted(set(Victim) - SOAKED, key=list(Victim).index):
        cells_of_victim = plan.setdefault(TOGETHER.get(victim, victim.name), [])
        for part in PARTS:
            free = [column for column in cells(victim) if column.stage in part and column.need not in _SLOW]
            if free:
                chosen = min(free, key=lambda column: (taken[column.name], stages[column.stage]))
                taken[chosen.name] += 1
                stages[chosen.stage] += 1
                cells_of_victim.append((victim, chosen))
    return [Strike(name, tuple(cells_at_once)) for name, cells_at_once in plan.items()]


def complete(at_once: int) -> list[Strike]:
    """Every cell: those of `make soak`."""
    plan = []
    for victim in Victim:
        columns = cells(victim)
        for number, start in enumerate(range(0, len(columns), at_once)):
            plan.append(Strike(f"{victim.name}-{number}", tuple((victim, c) for c in columns[start : start + at_once])))
    return plan
