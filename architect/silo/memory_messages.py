"""Agent and memory process: what they say to each other, over `call` envelopes on a unix socket in the VM's run directory.

The agent calls, the memory process answers. Version: both come from one installation; `Status.version` is checked on reattach.
States and what is legal in them: `memory_state`.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from architect.model.compression import Compression
from architect.model.handover_span import Spans
from architect.silo.memory_role import MemoryRole

STREAMS_MAX = 16


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """One message; its class name is its tag."""


class Attach(_Message, frozen=True):
    """Watch this QEMU's memory. Idempotent for the same process and role. Answers `Done`."""

    pid: int
    role: MemoryRole


class GetStatus(_Message, frozen=True):
    """How it stands. With `scan` the pages written until now count as left, too. Answers `MemoryStatus`."""

    scan: bool = False


class FaultReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Faults that were answered, and how long they took from their message to the page."""

    count: int = 0
    median_us: float = 0.0
    p99_us: float = 0.0


class MemoryStatus(_Message, frozen=True):
    """How it stands. `dirty_pages` were found written by the last scan, `pages_left` are to be sent or received; of
    what was sent, the peer's kernel has acknowledged `bytes_acked`; compression has kept `bytes_saved` more off the wire. A guest
    waited for the faults: zero ones were answered here, remote ones by the source of a post-copy. At a target nothing was heard
    from the source's host for `silent_s`."""

    version: int
    state: str
    pid: int
    memory_fd: int
    memory_bytes: int
    qemu_pid: int = 0
    role: str = ""
    dirty_pages: int = 0
    pages_left: int = 0
    bytes_sent: int = 0
    bytes_acked: int = 0
    bytes_received: int = 0
    bytes_saved: int = 0
    tunnel_bytes_sent: int = 0
    tunnel_bytes_saved: int = 0
    silent_s: float = 0.0
    zero_faults: FaultReport = FaultReport()
    remote_faults: FaultReport = FaultReport()
    error: str = ""


class SourceOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where a move sends to. `session` is its secret, which the target was opened with; `server_name` is the TLS name of the
    target's certificate (`tls.san_name`); `bandwidth_bytes_s` 0 is no limit; a lost post-copy is taken up again for
    `reconnect_s`. A memory process of an older version takes the fields that it does not know as long as they are not used."""

    session: str
    address: str
    port: int
    server_name: str
    streams: Annotated[int, msgspec.Meta(ge=1, le=STREAMS_MAX)] = 2
    bandwidth_bytes_s: Annotated[int, msgspec.Meta(ge=0)] = 0
    reconnect_s: float = 20.0
    compression: Compression = Compression.AUTO


class OpenSource(_Message, frozen=True):
    """Connect to the target. `resume`: the VM's post-copy went on before this process was restarted; `SERVE` is next. Answers
    `Done`."""

    options: SourceOptions
    resume: bool = False


class Bulk(_Message, frozen=True):
    """Send all pages once. Stops early after `deadline_s`. Cancel stops it, too. Answers `RoundStats`."""

    deadline_s: float | None = None


class Round(_Message, frozen=True):
    """Send what was written since. As Bulk."""

    deadline_s: float | None = None


class StopRound(_Message, frozen=True):
    """Make the Bulk or Round that runs, if any, end early: it answers with what it has done. Answers `Done` at once."""


class SetBandwidth(_Message, frozen=True):
    """From now on the move from here sends no more than this, tunnels and all; 0 is no limit. Answers `Done` at once."""

    bytes_per_s: Annotated[int, msgspec.Meta(ge=0)]


class RoundStats(_Message, frozen=True):
    """What a round sent, and how many pages were written meanwhile or left; `bytes_saved` as in `MemoryStatus`."""

    pages: int
    zero_pages: int
    bytes_sent: int
    duration_s: float
    dirty_after: int
    bytes_saved: int = 0


class Announce(_Message, frozen=True):
    """Tell the target what it would lack now, while the guest still runs: shortens a post-copy cut. Answers `Done`."""


class MakeCut(_Message, frozen=True):
    """The guest is paused: send the rest, or (postcopy) the list of the rest. Answers `Cut`."""

    postcopy: bool


class Cut(_Message, frozen=True):
    """The memory at the cut. `root` is "" after a post-copy cut: it is promised and proved when all has arrived.

    `spans`: what took how long, by this host's monotonic clock.
    """

    root: str
    pages_missing: int
    bytes_sent: int
    spans: Spans = ()
    bytes_saved: int = 0


class Serve(_Message, frozen=True):
    """Push what the target lacks until it has proved that it has all. Answers `Served`."""


class StartServing(_Message, frozen=True):
    """Begin what `Serve` waits for, and reconnect where the target is lost; `Serve` joins it. Idempotent. Answers `Done`."""


class Served(_Message, frozen=True):
    """The target has everything, and its root is the source's."""

    root: str
    bytes_sent: int
    demanded_pages: int
    reconnects: int


class EndSource(_Message, frozen=True):
    """Forget the move, before the cut or after its end (abort and end are one). Idempotent. Answers `Done`."""


class OpenTarget(_Message, frozen=True):
    """Take a move with this secret at `address`. The memory becomes all zeros. Answers `TargetEndpoint`."""

    session: str
    address: str


class TargetEndpoint(_Message, frozen=True):
    """Where the source connects."""

    port: int


class ApplyCut(_Message, frozen=True):
    """Return when the memory of the cut is in place: with this `root`, or (postcopy) the missing pages known. Answers `Applied`."""

    root: str
    postcopy: bool
    timeout_s: float = 10.0


class Applied(_Message, frozen=True):
    """The memory of the cut is in place. `spans`: what took how long, by this host's monotonic clock."""

    root: str
    pages_missing: int
    spans: Spans = ()


class WaitPresent(_Message, frozen=True):
    """Return when all pages have arrived after a post-copy cut. Answers `Applied`."""

    timeout_s: float


class AbortTarget(_Message, frozen=True):
    """Forget the move; the memory is garbage. Idempotent. Answers `Done`."""


class TunnelListen(_Message, frozen=True):
    """Carry connections to the unix socket `path` (made here) to the peer's TunnelConnect of this name. Answers `Done`."""

    name: str
    path: str


class TunnelConnect(_Message, frozen=True):
    """Connections that the peer carries here under this name go to the unix socket `path`. Answers `Done`."""

    name: str
    path: str


class TunnelServe(_Message, frozen=True):
    """What the peer's connections under this name read, by NBD, is the file `path`, which nobody writes. Answers `Done`."""

    name: str
    path: str


class TunnelClose(_Message, frozen=True):
    """End the tunnel and its connections. Idempotent. Answers `TunnelBytes`."""

    name: str


class TunnelBytes(_Message, frozen=True):
    """What a tunnel carried: `sent` to the peer, `saved` of them kept off the wire by compression."""

    sent: int
    received: int
    saved: int = 0


class FullHash(_Message, frozen=True):
    """Hash the memory itself, with no regard to what is known of it. Answers `Hashed`."""


class Hashed(_Message, frozen=True):
    """The root of the memory as it is."""

    root: str


class Shutdown(_Message, frozen=True):
    """End the process. Answers `Done` first."""


class Done(_Message, frozen=True):
    """It is done."""


MemoryMessage = (
    Attach | GetStatus | MemoryStatus | OpenSource | Bulk | Round | StopRound | SetBandwidth | RoundStats | Announce | MakeCut | Cut
    | StartServing | Serve | Served | EndSource | OpenTarget | TargetEndpoint | ApplyCut | Applied | WaitPresent | AbortTarget
    | TunnelListen | TunnelConnect | TunnelServe | TunnelClose | TunnelBytes | FullHash | Hashed | Shutdown | Done
)  # fmt: skip
