"""What the source of a handover needs from outside: the VM's machine, memory process and packets here, and the host itself.

The rules for adapters stand in `ports`.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from architect.migration.handover_plan import HandoverPlan, MemoryCut, MemoryProgress, MirrorProgress, RoundStats
from architect.migration.ownership_log import OwnershipLog
from architect.migration.ports import BasePort, DialPort, EdgePort, LogPort, StepGate
from architect.model.ids import MigrationId
from architect.wire.agent_messages import MigrateVm, MigrationReport


class SourceMachinePort(Protocol):
    """The machine that moves, at the source. Paths are unix sockets of NBD servers."""

    async def run_hook(self, name: str) -> None:
        """Run the guest's hook (`before-suspend`, `after-resume`); without one nothing happens."""
        ...

    async def sync_clock(self) -> None:
        """Tell the guest the time after a pause."""
        ...

    async def start_mirror(self, path: str) -> None:
        """Start copying the disk to the NBD server at `path`, and follow its writes."""
        ...

    async def mirror_progress(self) -> MirrorProgress:
        """How far the mirror is."""
        ...

    async def finish_mirror(self) -> None:
        """End the mirror, all writes flushed, no job left. The machine is stopped."""
        ...

    async def cancel_mirror(self) -> None:
        """End the mirror whatever its state; the machine goes on with its own disk."""
        ...

    async def freeze_disk(self) -> str:
        """All that the stopped machine ever wrote to its disk is in a file from now on; returns its path."""
        ...

    async def pause(self) -> float:
        """Stop the guest; returns when it stopped (seconds since 1970, from QEMU's STOP event)."""
        ...

    async def resume(self) -> None:
        """Let the guest run again; a running one goes on."""
        ...

    async def save_device_state(self) -> bytes:
        """The stopped machine's device state."""
        ...

    async def what_ended(self) -> str:
        """Which processes of the VM here have ended by themselves since the move began, and how; "" if none has. At once."""
        ...

    async def destroy(self) -> None:
        """End the machine and delete all that this host has of it: QEMU, memory process, tap, tunnel, disk, files."""
        ...


class SourceMemoryPort(Protocol):
    """The memory process of the VM that moves. Cancelling `serve_until_done` only stops waiting."""

    async def open_source(self, session: MigrationId, address: str, port: int, server_name: str, streams: int) -> None:
        """Connect to the target's memory process, and begin a dirty bitmap of this handover's own."""
        ...

    async def set_bandwidth(self, bytes_per_s: int) -> None:
        """From now on send no more than this per second, memory and tunnels together; 0 is no limit. Between opening and end."""
        ...

    async def bulk(self) -> RoundStats:
        """Send all memory once."""
        ...

    async def round(self) -> RoundStats:
        """Send what is dirty or unsent."""
        ...

    async def stop_round(self) -> None:
        """Make the `bulk` or `round` that runs end early, and return what it has done; the rest is left. Without one: nothing."""
        ...

    async def progress(self) -> MemoryProgress:
        """How far it is; callable while `bulk` or `round` run."""
        ...

    async def cut(self, postcopy: bool) -> MemoryCut:
        """The guest is stopped: send what is still dirty, or with `postcopy` only its list, and the root of it all."""
        ...

    async def full_hash(self) -> str:
        """An independent hash of all memory of the stopped guest."""
        ...

    async def start_serving(self) -> None:
        """Serve as `serve_until_done` from now on, whether somebody waits for it or not. Returns at once; idempotent."""
        ...

    async def serve_until_done(self) -> None:
        """Serve the target's page and block demands and push the rest, until the target has all. Idempotent; rejoins."""
        ...

    async def abort_source(self) -> None:
        """End the session with its tunnels; what was dirty for it is forgotten."""
        ...

    async def is_serving(self) -> bool:
        """Whether a post-copy session that is not done is open (asked by an agent that restarted)."""
        ...

    async def tunnel_listen(self, name: str) -> str:
        """A unix socket here whose connections end at the other side's `tunnel_connect` of that name."""
        ...

    async def tunnel_serve(self, name: str, path: str) -> None:
        """Connections of the other side's `tunnel_listen` of that name read the file `path`, whatever becomes of the machine."""
        ...


class SourceFlowPort(Protocol):
    """The VM's packets at the source host."""

    async def set_forward(self, target_address: str) -> None:
        """Packets that still arrive for the VM go on to the target host."""
        ...

    async def set_local(self) -> None:
        """Packets for the VM go to its tap."""
        ...

    async def wait_drained(self, timeout_s: float) -> None:
        """Until the running guest has taken all packets from its tap. Raises HostError when the time is over."""
        ...

    async def relay_rest(self, target_address: str) -> None:
        """What the guest, now paused, has not taken from its tap goes on to the target host: late, but not lost."""
        ...

    async def wait_quiet(self, timeout_s: float) -> None:
        """Until nothing was forwarded for two round trips. Raises HostError when the time is over."""
        ...


class SourcePorts(msgspec.Struct, frozen=True):
    """All that the source side of one handover uses."""

    machine: SourceMachinePort
    memory: SourceMemoryPort
    flows: SourceFlowPort
    edge: EdgePort
    log: LogPort
    bases: BasePort
    ownership: OwnershipLog
    gate: StepGate | None = None


class Handover(msgspec.Struct, frozen=True):
    """One handover as the source host opened it."""

    plan: HandoverPlan
    ports: SourcePorts
    dial: DialPort


class SourceHostPort(Protocol):
    """The host that VMs move away from."""

    async def open_handover(self, request: MigrateVm) -> Handover:
        """The plan of this move, and the ports to VM and target. Changes nothing.

        Raises:
            NotFoundError: the VM is not here.
            ConflictError: its state forbids a move now.
        """
        ...

    def keep(self, plan: HandoverPlan) -> None:
        """Remember that this move has begun, over the agent's death (`handover_source.recover` wants it back)."""
        ...

    def forget(self, plan: HandoverPlan) -> None:
        """The move has ended."""
        ...

    def ended(self, report: MigrationReport, term: int, keeps: bool) -> None:
        """The move has ended; `term` is the VM's newest known term; `keeps`: this host still owns the VM."""
        ...
