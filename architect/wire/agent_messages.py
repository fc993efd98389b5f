"""Control plane and agent: what they say to each other, over `call` envelopes on one TLS connection that the agent opens.

The agent says `Hello` first (a call; the answer is `Welcome`) and then notes a `HostReport` every second and whenever something
changed: the whole state of the host, so that a lost report costs nothing. The control plane calls the rest. All requests are
idempotent by the id that they carry. An agent's view wins over the control plane's memory of it.

Version: `framing.PROTOCOL_VERSION` in Hello, equal on both sides.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from architect.model.compression import Compression
from architect.model.handover_span import Spans
from architect.model.handover_state import HandoverState, MigrationMode
from architect.model.ids import HostName, MigrationId, VmId
from architect.model.notice import Notice
from architect.model.vm_spec import VmRequest, VmSpec
from architect.model.vm_state import VmState


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """One message; its class name is its tag."""


class HostFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a host is. `address` is its underlay IPv4 address, `migration_port` where its agent takes peers."""

    name: HostName
    provider: str
    region: str
    address: str
    migration_port: int
    memory_bytes: int
    cpus: int
    accelerator: str
    qemu_version: str
    tsc_khz: int
    kernel_release: str
    kernel_sha256: str
    initramfs_sha256: str
    underlay_mtu: int = 1500


class Hello(_Message, frozen=True):
    """An agent introduces itself."""

    version: int
    architect: str
    host: HostFacts


class Welcome(_Message, frozen=True):
    """The control plane accepts. `report_interval_s` is how often it wants to hear from the agent."""

    fabric: str
    report_interval_s: float


class Phase(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a handover, in seconds from its start."""

    name: str
    start_s: float
    end_s: float


class MoveDecision(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the source saw at one moment of a move, and what it chose. `at_s` is from the move's start.

    `dirty_bytes` and `disk_bytes` are what is left of memory and disk; `dirty_bytes_s` how fast memory was written in the last
    round; `bandwidth_bytes_s` the rate that is likely, by what compression gained so far, `bandwidth_low_bytes_s` the careful one,
    without compression; `remaining_s` until the deadline.
    """

    at_s: float
    round: int
    dirty_bytes: int
    disk_bytes: int
    dirty_bytes_s: int
    bandwidth_bytes_s: int
    bandwidth_low_bytes_s: int
    remaining_s: float | None
    choice: str
    why: str


class MigrationReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a handover stands, or ended. `mode` is what was done: precopy or postcopy; bytes are what crossed the wire, but for
    `bytes_saved`, which compression kept off it.

    `downtime_ms` is known once the target has said that the guest runs there.
    `decisions` are those that changed its course, oldest first; `look` is what was seen last.
    `spans` and `phases` count from the start of the handover, when the source's monotonic clock showed `clock_at_s`. Spans of
    other machines than the source are off by at most `clock_error_ms`; None: their clocks were not compared.
    """

    id: MigrationId
    vm: VmId
    source: HostName
    target: HostName
    mode: MigrationMode
    state: HandoverState
    reason: str = ""
    total_s: float = 0.0
    downtime_ms: float | None = None
    rounds: int = 0
    bytes_sent: int = 0
    bytes_peer: int = 0
    bytes_store: int = 0
    bytes_base: int = 0
    bytes_saved: int = 0
    memory_bytes: int = 0
    disk_bytes_sent: int = 0
    phases: tuple[Phase, ...] = ()
    verified: bool | None = None
    progress: float = 0.0
    decisions: tuple[MoveDecision, ...] = ()
    look: MoveDecision | None = None
    spans: Spans = ()
    clock_error_ms: float | None = None
    clock_at_s: float = 0.0


class VmObservation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A VM as its host sees it. `term` is the one by which the host has it; 0: the VM is still to come.

    `progress` is a line for people while it is being created. `held_bytes` is what exists of its memory and disk, and so what a
    move has to send; 0 if that is not known. It runs here, and some of its memory or disk is still at the host `fills_from`;
    `waits_because` says that this is not reached at present.
    """

    id: VmId
    state: VmState
    term: int
    spec: VmSpec | None = None
    reason: str = ""
    exit_code: int | None = None
    progress: str = ""
    pid: int = 0
    migration: MigrationReport | None = None
    held_bytes: int = 0
    fills_from: str = ""
    waits_because: str = ""


class HostReport(_Message, frozen=True):
    """The whole state of a host. `memory_free_bytes` is what a new VM may still take.

    `notice` is unset until the agent has heard its cloud for the first time: then what was known before holds.
    """

    host: HostName
    memory_free_bytes: int
    vms: tuple[VmObservation, ...]
    notice: Notice | msgspec.UnsetType | None = msgspec.UNSET
    edge_rtt_ms: float | None = None


class RunVm(_Message, frozen=True):
    """Make this VM run. Streams `Progress`, then answers `VmStatus`. Idempotent by the request's id."""

    request: VmRequest


class StopVm(_Message, frozen=True):
    """Stop the VM: the image's stop signal, then after `grace_s` the power. Answers `VmStatus`."""

    vm: VmId
    grace_s: float


class RemoveVm(_Message, frozen=True):
    """Forget a VM that is over (`force`: that runs, too) and delete all it has on this host. Answers `Done`."""

    vm: VmId
    force: bool = False


class MigrateVm(_Message, frozen=True, omit_defaults=True):
    """Move the VM to `target`. Streams `MigrationProgress`, then answers `MigrationProgress`, its report terminal.

    Idempotent by `migration`: asked again (a control plane that restarted), it joins the handover that runs, or reports how it
    ended. `deadline_s` is how long the source host has, from now; None if it is not in a hurry. `bandwidth_bytes_s` is what the
    move may send per second; 0: no limit, None: the source host's default. An agent of an older version takes the fields that it
    does not know as long as they have their defaults.
    """

    migration: MigrationId
    vm: VmId
    target: HostFacts
    mode: MigrationMode
    deadline_s: float | None = None
    verify: bool = False
    bandwidth_bytes_s: Annotated[int, msgspec.Meta(ge=0)] | None = None
    compression: Compression = Compression.AUTO


class GiveUpMove(_Message, frozen=True):
    """Undo that move; one whose cut has left goes on to its end. Answers `Done` at once: how it ends is told to who asked for it.

    Idempotent. A move that is not known here is refused, should it be asked for yet.
    """

    migration: MigrationId
    vm: VmId
    reason: str


class SourceGone(_Message, frozen=True):
    """That host is gone for good: what VMs here still lack of it will not come, unless this host hears it yet. Answers `Done`.

    Repeated as long as it holds; one that is not repeated is forgotten.
    """

    source: HostName
    why: str


class AcknowledgeNotice(_Message, frozen=True):
    """No VM is left here: tell the cloud that the notice may proceed (Azure), if it wants to know. Answers `Done`."""

    notice: str


class ReadClock(_Message, frozen=True):
    """What does the host's monotonic clock show? Answers `ClockIs`, at once."""


class ClockIs(_Message, frozen=True):
    """It showed that when the question was read."""

    now_s: float


class ReadLog(_Message, frozen=True):
    """The VM's output from `offset` (bytes of the log's text). Streams `LogData` with the text as body, answers `Done` at the end.

    With `follow` the stream ends when the VM is over or leaves this host.
    """

    vm: VmId
    offset: int = 0
    follow: bool = False


class ExecStart(_Message, frozen=True):
    """Run a command in the VM. Streams `ExecOutput` (body: data), answers `ExecExit`. `session` is chosen by the caller."""

    vm: VmId
    session: str
    args: tuple[str, ...]
    env: tuple[str, ...] = ()
    tty: bool = False
    rows: int = 24
    columns: int = 80


class ExecInput(_Message, frozen=True):
    """Input (body) for a command that runs; an empty body with `end` closes its input. Answers `Done`."""

    vm: VmId
    session: str
    end: bool = False
    rows: int = 0
    columns: int = 0


class Progress(_Message, frozen=True):
    """A line for people about long work."""

    text: str


class VmStatus(_Message, frozen=True):
    """A VM after a request."""

    vm: VmObservation


class MigrationProgress(_Message, frozen=True):
    """How a handover stands."""

    report: MigrationReport


class LogData(_Message, frozen=True):
    """A part of a VM's output; the body is the text, which starts at `offset`."""

    offset: int


class ExecOutput(_Message, frozen=True):
    """Output of a command; the body is the data. `stream` is 1 or 2."""

    stream: int


class ExecExit(_Message, frozen=True):
    """A command ended. `exit_code` is 128 + signal where a signal ended it."""

    exit_code: int


class Done(_Message, frozen=True):
    """It is done."""


AgentMessage = (
    Hello | Welcome | HostReport | RunVm | StopVm | RemoveVm | MigrateVm | GiveUpMove | SourceGone | AcknowledgeNotice
    | ReadClock | ClockIs | ReadLog | ExecStart | ExecInput | Progress | VmStatus | MigrationProgress | LogData | ExecOutput
    | ExecExit | Done
)  # fmt: skip
