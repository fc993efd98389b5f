"""Source agent and target agent: what they say to each other in one handover, over `call` envelopes on one TLS connection.

The source opens the connection and asks; the target only answers. Memory and disk travel between the memory processes of the
two VMs and never here; what is bulk here (a base disk that the target lacks, the VM's output so far, device state) is a frame's
body of at most `framing.BODY_BYTES_MAX`.

::

    source agent                                  target agent
        │ PeerHello ───────────────────────────────→ │  version, names
        │ AskClock (some, whenever nothing waits) ─→ │  how far the two clocks are apart
        │ Prepare ─────────────────────────────────→ │  checks, reserves; refuses by name
        │ BasePart … (if it lacks the base) ───────→ │
        │ Start ───────────────────────────────────→ │  QEMU -S -incoming defer, memory process listens
        │ LogPart … ───────────────────────────────→ │  beside the copy of memory and disk
        │ Alive (whenever it was quiet for a while)→ │
        │ Hold ────────────────────────────────────→ │  tap LOCAL: packets wait for the VM
        │ Cut (device state) ──────────────────────→ │  verify, load, create RUN term + 1, cont
        │ ←──────────────────────────────── Committed │
        │ AwaitFilled (post-copy only) ────────────→ │
        │ Release ─────────────────────────────────→ │  the source forwards nothing more; answered when the guest is seen
        │ Abort (instead, any time before Cut, and after the abort record exists)

Everything is idempotent by the migration's id. AskStatus may come on a later connection: the source lost the first one.

Version: `framing.PROTOCOL_VERSION` in PeerHello, equal on both sides; anything before PeerHello is refused. A message is never
changed in place: a new field or message means a new version, and both hosts of a move must have it.
"""

from __future__ import annotations

import msgspec

from architect.model.handover_span import Spans
from architect.model.handover_state import HandoverState, MigrationMode
from architect.model.ids import HostName, MigrationId
from architect.model.vm_spec import VmSpec
from architect.wire.agent_messages import HostFacts


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """One message; its class name is its tag."""


class PeerHello(_Message, frozen=True):
    """A source agent introduces itself. Answered by `PeerWelcome`; the first message on every connection."""

    version: int
    host: HostName


class PeerWelcome(_Message, frozen=True):
    """The target agent accepts."""

    version: int
    host: HostName


class Prepare(_Message, frozen=True):
    """Reserve room for this VM and check that it can run here. Answered by `Prepared`, or refused by name.

    `term` is the source's term; the commit is the record `term + 1`. `memory_streams` connections will carry the memory.
    `disk_bytes` is what the VM's own disk takes at the source.
    """

    migration: MigrationId
    spec: VmSpec
    term: int
    source: HostFacts
    mode: MigrationMode
    verify: bool = False
    memory_streams: int = 2
    disk_bytes: int = 0


class Prepared(_Message, frozen=True):
    """Room is reserved. `base_bytes` is how much of the base disk the target has: less than its size means: send the rest."""

    base_bytes: int
    address: str


class BasePart(_Message, frozen=True):
    """A part of the base disk (body), in order; the last one is checked against the digest. Answered by `Accepted`."""

    migration: MigrationId
    offset: int


class Start(_Message, frozen=True):
    """Start the machine, halted, and listen for memory and disk. Answered by `Started`."""

    migration: MigrationId


class Started(_Message, frozen=True):
    """Where the target's memory process takes the source's connections; `server_name` is for TLS."""

    memory_address: str
    memory_port: int
    server_name: str


class LogPart(_Message, frozen=True):
    """A piece (body) of the file of the VM's output, at `offset`; it replaces what is there. Answered by `Accepted`."""

    migration: MigrationId
    offset: int


class Alive(_Message, frozen=True):
    """The source still works on it. Answered by `Accepted`; a target that hears nothing for long gives up."""

    migration: MigrationId


class Hold(_Message, frozen=True):
    """Packets for the VM come here from now on and wait for it. Answered by `Accepted`."""

    migration: MigrationId


class Cut(_Message, frozen=True):
    """The source has stopped the VM: load it, take it over and let it run. Answered by `Committed`.

    The body is `device_state_bytes` of device state, then the VM's output from `log_offset` on. `root` is the memory's Merkle
    root as hex; `full_hash` an independent hash of all memory ("" if it is not asked for). With `postcopy` pages are still
    missing, with `disk_postcopy` the disk is.
    """

    migration: MigrationId
    root: str
    device_state_bytes: int
    log_offset: int
    postcopy: bool = False
    disk_postcopy: bool = False
    full_hash: str = ""


class Committed(_Message, frozen=True):
    """The target owns the VM by record `term`, and it runs since `resume_time_s` (seconds since 1970, the target's clock).

    `spans` is what it did so far, by its monotonic clock.
    """

    term: int
    resume_time_s: float
    spans: Spans = ()


class AwaitFilled(_Message, frozen=True):
    """Answer when no page and no block is missing any more, or never will be. Answered by `TargetStatus`, its state terminal."""

    migration: MigrationId


class Release(_Message, frozen=True):
    """The source forwards nothing more: only the target may speak for the VM. Answered by `Released`."""

    migration: MigrationId


class Released(_Message, frozen=True):
    """Only the target speaks for the VM, and the guest was seen to run there, or time to wait for that was over.

    `spans` is what the target did since `Committed`, by its monotonic clock.
    """

    spans: Spans = ()


class AskClock(_Message, frozen=True):
    """What does your monotonic clock show? Answered by `ClockIs`, at once."""

    migration: MigrationId


class ClockIs(_Message, frozen=True):
    """It showed that when the question was read."""

    now_s: float


class Abort(_Message, frozen=True):
    """Undo everything; give the packets that wait for the VM back to the source. Answered by `TargetStatus`.

    A target whose VM runs refuses by answering its state; one that is about to commit first learns which record exists.
    """

    migration: MigrationId
    reason: str


class AskStatus(_Message, frozen=True):
    """How does this handover stand? Answered by `TargetStatus`; NotFoundError if the target knows nothing of it."""

    migration: MigrationId


class TargetStatus(_Message, frozen=True):
    """How a handover stands at the target. `ended` names processes of the VM that have ended there by themselves, and how."""

    state: HandoverState
    reason: str = ""
    resume_time_s: float = 0.0
    ended: str = ""


class Accepted(_Message, frozen=True):
    """It is done."""


TargetRequest = Prepare | BasePart | Start | LogPart | Alive | AskClock | Hold | Cut | AwaitFilled | Release | Abort | AskStatus
MigrationMessage = (
    PeerHello | PeerWelcome | TargetRequest | Prepared | Started | Committed | Released | ClockIs | TargetStatus | Accepted
)  # fmt: skip
