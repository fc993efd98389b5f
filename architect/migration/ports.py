"""What both sides of a handover need from outside (`source_ports`, `target_ports`: what only one needs).

The agent package implements them over QEMU, the memory process, the host's network, the edge and the ownership log; the simulator
implements them over a virtual machine room. Rules for every adapter:

- Failures are `ArchitectError`s. The callers bound every wait and cancel what is late: a cancelled call leaves the thing usable.
- Everything that undoes (`resume`, `cancel_mirror`, `set_local`, `abort_*`, `destroy`) may be called when there is
  nothing to undo, and repeatedly.
- What runs outside the agent (QEMU, memory process, edge, store) may still carry out a call whose caller has died.
"""

from __future__ import annotations

from typing import Any, Protocol

from architect.errors import ConflictError
from architect.migration.ownership_log import OwnershipLog
from architect.model.handover_span import TimedAway
from architect.model.ownership import OwnershipRecord, RecordKind

MIRROR_TUNNEL = "mirror"
"""Carries the disk's mirror, from the source's QEMU to the target's export."""
POSTCOPY_TUNNEL = "postcopy"
"""Carries the disk's reads after a post-copy cut, from the target's QEMU to the source's memory process, which has the file."""


class EdgePort(Protocol):
    """The VM at its edge."""

    async def steer(self, term: int, host: str, previous: str) -> TimedAway | None:
        """Packets go to the underlay address `host`; still accept some from `previous` ("": from nobody else).

        Returns when the edge did it, on this host's clock, if that is known.
        """
        ...

    async def settle(self) -> None:
        """Wait until what was on its way to the previous host has arrived there (from the measured round trip)."""
        ...


class LogPort(Protocol):
    """The VM's output so far, which moves with it as a file. Old output may be dropped at any time; what stays keeps its place."""

    async def size(self) -> int:
        """Where it ends."""
        ...

    async def read(self, offset: int, count: int) -> tuple[tuple[int, bytes], ...]:
        """The pieces that tell what is there from `offset` on: (where, bytes). The last is at most `count` bytes of output, from
        `offset` or from where it begins by now; one before it, if there is any, says where that is."""
        ...

    async def append(self, offset: int, data: bytes) -> None:
        """Store `data` at `offset`; repeats are harmless."""
        ...


class BasePort(Protocol):
    """Base disks by content hash."""

    async def present_bytes(self, digest: str, size_bytes: int) -> int:
        """How much of the base this host has, from its start; all of it only if it is complete and checked."""
        ...

    async def read(self, digest: str, offset: int, count: int) -> bytes:
        """At most `count` bytes from `offset`."""
        ...

    async def write(self, digest: str, size_bytes: int, offset: int, data: bytes) -> None:
        """Store a part, in order; with the last one the whole is checked, and a wrong one is deleted and raises PeerError."""
        ...


class PeerPort(Protocol):
    """A connection to the other agent (`runtime.rpc.Channel`)."""

    async def call_with_body(self, value: Any, body: bytes | memoryview = b"", *, timeout_s: float | None) -> tuple[Any, bytes]:
        """Ask and wait for the answer."""
        ...

    async def run(self) -> None:
        """Serve until the connection ends."""
        ...

    def close(self) -> None:
        """End the connection."""
        ...


class DialPort(Protocol):
    """Opens connections to the target's agent; `run` and `close` belong to the caller."""

    async def dial(self) -> PeerPort:
        """A new connection. Raises UnavailableError."""
        ...


class StepGate(Protocol):
    """Where a test makes a handover wait before a step's actions are performed. There is none in production."""

    async def wait(self, point: str) -> None:
        """Return when the handover may go on. `point`: `source-STEP` or `target-STEP`."""
        ...


async def decided_record(log: OwnershipLog, record: OwnershipRecord) -> OwnershipRecord:
    """The record that decides what `record` wanted to: the one that exists for its term, or a later one, or the log's end.

    Raises:
        ArchitectError: that is not known yet; ask again.
    """
    try:
        return await log.create(record)
    except ConflictError:
        latest = await log.latest(record.vm)
        if latest is None or (latest.term < record.term and latest.kind is not RecordKind.END):
            raise
        return latest
