"""What the migration benchmark writes: every run as it was (`raw`), and one row for each cell and engine (`comparison`).

A run that failed or was too slow is a result, too: it is kept with its error, and its row counts it.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from bench.gap_window import Silence


class Engine(StrEnum):
    """Who moves the VM. The `-tuned` ones are allowed a pause of `Limits.tuned_downtime_limit_ms`, the others QEMU's default."""

    ARCHITECT = "architect"
    PRECOPY = "qemu-precopy"
    POSTCOPY = "qemu-postcopy"
    PREEMPT = "qemu-postcopy-preempt"
    MULTIFD = "qemu-multifd"
    PRECOPY_TUNED = "qemu-precopy-tuned"
    MULTIFD_TUNED = "qemu-multifd-tuned"


DEFAULT_ENGINES = (Engine.ARCHITECT, Engine.PRECOPY, Engine.POSTCOPY, Engine.PREEMPT, Engine.MULTIFD)


class Cell(msgspec.Struct, frozen=True):
    """One kind of VM: its memory, and how much of its memory and of its disk the guest is to write a second."""

    memory_mib: int
    dirty_mib_s: int
    disk_mib_s: int = 0

    def __str__(self) -> str:
        return f"{self.memory_mib}/{self.dirty_mib_s}/{self.disk_mib_s}"


class Gap(msgspec.Struct, frozen=True):
    """What a client outside saw over one move: a datagram every millisecond, and the longest time without an answer.

    `sender_stall_ms` is the longest time that the client itself failed to send: a gap not much longer than it is noise. `silences`
    are all that were noted, `lost_at_s` when the (first) lost ones were sent; both in seconds since 1970.
    """

    gap_ms: float
    sent: int
    lost: int
    sender_stall_ms: float
    silences: tuple[Silence, ...] = ()
    lost_at_s: tuple[float, ...] = ()


class Span(msgspec.Struct, frozen=True):
    """A part of a move; seconds since its start."""

    name: str
    start_s: float
    end_s: float


class Move(msgspec.Struct, frozen=True):
    """One move as its engine reports it. `resumed_at_s`: when the guest ran at the target, in seconds since 1970, if that is known.

    `details` are figures of that engine alone.
    """

    total_s: float
    downtime_ms: float
    bytes: int
    phases: tuple[Span, ...] = ()
    details: dict[str, float | int | str | bool] = {}
    resumed_at_s: float | None = None


class Written(msgspec.Struct, frozen=True):
    """How much a guest really wrote a second."""

    memory_mib_s: float
    disk_mib_s: float


class Run(msgspec.Struct, frozen=True):
    """One attempt: `move` is None if it failed, and then `error` says how. `load` is the machine's before it."""

    engine: Engine
    cell: Cell
    number: int
    started_at_s: float
    load: float
    move: Move | None
    gap: Gap | None
    error: str = ""
    before: Written | None = None
    during: Written | None = None


class Row(msgspec.Struct, frozen=True):
    """All runs of one engine in one cell: medians (`_p50`, or no mark) and the worst (`_max`) of those that went well.

    None where no run did. `storage`: `moved`, or `shared` by both ends. `dirty_mib_s_seen` is what the guest wrote before the
    moves, `dirty_mib_s_moving` from their start until its first report after their end; so for its disk. `after_resume_ms_p50`:
    from the resume to the end of the longest silence. `phases_ms`: each part of a move, all of its name together.
    """

    engine: Engine
    memory_mib: int
    dirty_mib_s: int
    disk_mib_s: int
    storage: str
    runs: int
    failed: int
    total_s: float | None
    downtime_ms_p50: float | None
    downtime_ms_max: float | None
    gap_ms_p50: float | None
    gap_ms_max: float | None
    after_resume_ms_p50: float | None
    bytes: int | None
    lost_p50: float | None
    lost_max: int | None
    dirty_mib_s_seen: float | None
    dirty_mib_s_moving: float | None
    disk_mib_s_seen: float | None
    disk_mib_s_moving: float | None
    phases_ms: dict[str, float] = {}


class Machine(msgspec.Struct, frozen=True):
    """Where it was measured, and what. `load` is the one-minute load average at the start, `commit` the code's."""

    cores: int
    memory_bytes: int
    kernel: str
    qemu: str
    accelerator: str
    load: float
    commit: str = ""


class Limits(msgspec.Struct, frozen=True):
    """What QEMU was allowed, for its defaults (128 MiB/s) would measure themselves. `timeout_s` is for everybody."""

    max_bandwidth_bytes_s: int = 100 << 30
    downtime_limit_ms: int = 300
    tuned_downtime_limit_ms: int = 40
    multifd_channels: int = 2
    timeout_s: float = 90.0


class EngineSetup(msgspec.Struct, frozen=True):
    """How an engine of QEMU was set up in the last run of it: capabilities that were on, and all parameters, as QEMU tells them."""

    engine: Engine
    capabilities: tuple[str, ...]
    parameters: dict[str, int | float | str | bool]


class Ratio(msgspec.Struct, frozen=True):
    """Ours divided by theirs, in one cell: below 1 is better."""

    engine: Engine
    memory_mib: int
    dirty_mib_s: int
    disk_mib_s: int
    total: float | None
    downtime: float | None
    gap: float | None
    bytes: float | None


class Aim(msgspec.Struct, frozen=True):
    """What we want in one cell, and what came out. Missed: `profile` has our phases there in ms, the longest first.

    `is_met` is None where there is nothing to compare with.
    """

    name: str
    memory_mib: int
    dirty_mib_s: int
    disk_mib_s: int
    limit: float
    found: float | None
    is_met: bool | None
    profile: dict[str, float] = {}


class Document(msgspec.Struct, frozen=True):
    """`out/bench/migration.json`."""

    machine: Machine
    limits: Limits
    rows: tuple[Row, ...]
    ratios: tuple[Ratio, ...]
    raw: tuple[Run, ...]
    aims: tuple[Aim, ...] = ()
    setups: tuple[EngineSetup, ...] = ()
