"""What the target of a handover needs from outside: the VM's machine, memory process and packets here, and the host itself.

The rules for adapters stand in `ports`.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from architect.errors import HostError
from architect.migration.ownership_log import OwnershipLog
from architect.migration.ports import BasePort, EdgePort, LogPort, StepGate
from architect.model.handover_span import Span
from architect.model.handover_state import HandoverState
from architect.model.ids import HostName, MigrationId, VmId
from architect.model.ownership import OwnershipRecord
from architect.model.vm_spec import VmSpec
from architect.wire.migration_messages import Prepare


class TargetMachinePort(Protocol):
    """The machine that comes, at the target."""

    async def start_incoming(self, spec: VmSpec) -> str:
        """Make disk, tap and memory process, start QEMU halted and waiting; returns the path of the disk's NBD server."""
        ...

    async def stop_export(self) -> None:
        """Stop the disk's NBD server: no write of the source can arrive any more."""
        ...

    async def attach_postcopy_disk(self, path: str) -> None:
        """A fresh overlay backed by the NBD server at `path`, copying on read; the rest streams after the resume."""
        ...

    async def load_device_state(self, state: bytes) -> None:
        """Load it; the guest stays halted."""
        ...

    async def is_alive(self) -> bool:
        """Whether the machine still exists: asked last before it is claimed, and answered at once."""
        ...

    async def resume(self) -> float:
        """Let the guest run; returns since when (seconds since 1970, from QEMU's RESUME event). A running one goes on.

        Raises:
            NeverRanError: the machine is dead, and nobody has told it to run, neither this agent nor one before it; or it has
                refused, and is still halted.
        """
        ...

    async def wait_disk_present(self) -> None:
        """Until the whole disk is here (at once, but after `attach_postcopy_disk`), as `wait_all_present`."""
        ...

    async def run_hook(self, name: str) -> None:
        """As at the source."""
        ...

    async def sync_clock(self) -> None:
        """As at the source."""
        ...

    async def what_ended(self) -> str:
        """As at the source."""
        ...

    async def destroy(self) -> None:
        """As at the source; gives the reservation back, too."""
        ...


class NeverRanError(HostError):
    """A machine that is dead or refuses to run, and certainly never ran: nobody can have seen its guest do anything."""

    code = "never-ran"


class MemoryListener(msgspec.Struct, frozen=True):
    """Where a target's memory process listens, and the name in its certificate."""

    address: str
    port: int
    server_name: str


class TargetMemoryPort(Protocol):
    """The memory process of the VM that comes."""

    async def open_target(self, session: MigrationId) -> MemoryListener:
        """Listen for the source's memory process."""
        ...

    async def apply_cut(self, root: str, postcopy: bool) -> tuple[Span, ...]:
        """Everything that was sent is in place, and its root is `root`; with `postcopy` stale and missing pages are guarded.

        Returns what the memory process spent its time on.

        Raises:
            HandoverError: the roots differ, or the cut did not arrive.
        """
        ...

    async def full_hash(self) -> str:
        """An independent hash of all memory, before device state is loaded."""
        ...

    async def wait_all_present(self) -> None:
        """Until no page is missing and the promised root is proved, however long the source cannot be reached. Raises LostError if
        it never will be."""
        ...

    async def silent_s(self) -> float:
        """How long nothing was heard from the source's host.

        Raises:
            ArchitectError: nobody can tell just now.
        """
        ...

    async def abort_target(self) -> None:
        """End the session."""
        ...

    async def tunnel_listen(self, name: str) -> str:
        """As at the source."""
        ...

    async def tunnel_connect(self, name: str, path: str) -> None:
        """Connections of the other side's `tunnel_listen` of that name go to the unix socket `path`."""
        ...


class TargetFlowPort(Protocol):
    """The VM's packets at the target host."""

    async def hold(self) -> None:
        """The tap is LOCAL: packets wait in it for the guest."""
        ...

    async def set_local(self) -> None:
        """The guest runs: packets go to its tap (it was so since `hold`, unless the agent restarted)."""
        ...

    async def wait_first_packet(self) -> float:
        """Until the guest has sent its first packet here; returns when that was, by this host's monotonic clock."""
        ...

    async def relay(self, source_address: str) -> None:
        """Send what waits, and what still arrives, on to the source host, in order."""
        ...


class TargetPorts(msgspec.Struct, frozen=True):
    """All that the target side of one handover uses."""

    machine: TargetMachinePort
    memory: TargetMemoryPort
    flows: TargetFlowPort
    edge: EdgePort
    log: LogPort
    bases: BasePort
    ownership: OwnershipLog
    gate: StepGate | None = None


class TargetHostPort(Protocol):
    """The host that takes VMs in."""

    async def wait_known(self, vm: VmId) -> None:
        """Until what an agent before us has left here of a VM that was coming is known to `HandoverTarget.recover`, or is gone."""
        ...

    async def latest_record(self, vm: VmId) -> OwnershipRecord | None:
        """The VM's newest ownership record.

        Raises:
            UnavailableError, HostError: the log does not tell.
        """
        ...

    async def reserve(self, request: Prepare) -> TargetPorts:
        """Keep room for the VM, and the ports to it. Nothing of it runs yet; `machine.destroy` gives the room back.

        Raises:
            CapacityError, ConflictError, IncompatibleError: it cannot come here, by name.
        """
        ...

    def shortage(self) -> str:
        """What this host lacks for VMs that come (room on its disk), in words; "" if nothing. Asked when something has failed."""
        ...

    def taken_over(self, migration: MigrationId, spec: VmSpec, term: int) -> None:
        """The VM is this host's by record `term` and runs: supervise it."""
        ...

    def waits(self, vm: VmId, why: str) -> None:
        """The VM may have to wait for what its source does not send; "": not any more."""
        ...

    def filled(self, vm: VmId) -> None:
        """No page and no block is missing any more."""
        ...

    def lost(self, vm: VmId, reason: str) -> None:
        """The VM was this host's and is gone."""
        ...

    def outcome(self, migration: MigrationId) -> HandoverState | None:
        """How a move that came here ended, if its session is forgotten: DONE if all of the VM is here, LOST, or None: not known, or
        it still fills, and whoever asks has to ask again."""
        ...

    def abandoned(self, vm: VmId, source: HostName, reason: str) -> None:
        """The VM did not come; nothing of it is left here."""
        ...
