"""The target's adapters: one VM that comes to this host, as the handover engine sees it (`migration.target_ports`)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket

from architect.agent.disk_arrival import DiskArrival
from architect.agent.host import Host
from architect.agent.hosted_vm import HostedVm
from architect.agent.memory_watch import wait_replaced
from architect.agent.move_shared import close_tunnels, connect_answered, connect_unix, listen_tunnel, parts_of
from architect.agent.vm_parts import PartEndedError, start_incoming
from architect.drafter.disk_export import start_incoming_export, stop_exports
from architect.drafter.disk_postcopy import attach_remote
from architect.drafter.overlay import create_overlay
from architect.drafter.qmp import QmpRefusedError
from architect.errors import ArchitectError, HostError, IncompatibleError, LostError, UnavailableError
from architect.migration.source_actions import POSTCOPY_TUNNEL
from architect.migration.target_ports import MemoryListener, NeverRanError
from architect.model.handover_span import Span
from architect.model.ids import MigrationId
from architect.model.vm_spec import VmSpec
from architect.runtime.boot import boot_id

RESUME_TIMEOUT_S = 3600.0


class TargetMachine:
    """`TargetMachinePort` over QEMU."""

    def __init__(self, host: Host, vm: HostedVm, group: asyncio.TaskGroup) -> None:
        self._host = host
        self._vm = vm
        self._group = group
        self._remote: socket.socket | None = None
        self._is_ours = False

    async def start_incoming(self, spec: VmSpec) -> str:
        """As the port says."""
        try:
            parts = await start_incoming(self._host, self._vm.folder, spec)
        except IncompatibleError as error:
            cause = f"cannot build the VM's hardware: {error.cause}"
            raise IncompatibleError(f"host {self._host.config.name}", cause, "choose another target host") from error
        except PartEndedError as error:
            self._vm.ended_in_start = error.words
            raise
        self._vm.parts = parts
        self._vm.folder.note_halted(boot_id())
        self._vm.keep_memory(self._group, parts)
        return str(await start_incoming_export(parts.machine))

    async def stop_export(self) -> None:
        """As the port says."""
        if self._vm.parts is not None:
            await stop_exports(self._vm.parts.machine)

    async def attach_postcopy_disk(self, path: str) -> None:
        """As the port says."""
        machine = parts_of(self._vm).machine
        spec = self._vm.spec
        fresh = self._vm.folder.path / "overlay-fresh.qcow2"
        await create_overlay(fresh, max(spec.request.disk_bytes, spec.base.size_bytes))
        os.chown(fresh, self._host.config.vm_uid, self._host.config.vm_uid)
        fresh.chmod(0o600)
        self._remote = connect_unix(path)
        await attach_remote(machine, self._remote.fileno(), fresh)
        with contextlib.suppress(OSError):  # a name, no more; what the mirror had brought goes
            fresh.replace(self._vm.folder.overlay)

    async def load_device_state(self, state: bytes) -> None:
        """As the port says."""
        await parts_of(self._vm).machine.load_device_state(state)

    async def is_alive(self) -> bool:
        """As the port says."""
        return self._is_alive()

    async def resume(self) -> float:
        """As the port says. That the machine may run is written down before it is told so, and that it does not when it refuses.

        QEMU opens the disks anew before the guest runs, and one of a post-copy may be out of reach.
        """
        folder, was_halted = self._vm.folder, self._is_certainly_halted()
        if not self._is_alive() and was_halted:
            raise self._never_ran(f"{self._vm.what_ended() or f'its QEMU ended on host {self._host.config.name}'} before it ran")
        self._is_ours = True
        machine = parts_of(self._vm).machine
        folder.halted.unlink(missing_ok=True)
        try:
            # Who waits for it bounds that. It is told only once: after a refusal QEMU (7.2) takes another `cont`, and runs the
            # guest on a disk that it has closed.
            return await machine.resume(RESUME_TIMEOUT_S)
        except QmpRefusedError as error:
            if not was_halted:
                raise
            with contextlib.suppress(HostError):  # a full disk: then only this agent knows
                folder.note_halted(boot_id())
            self._is_ours = False
            why = self._vm.what_ended() or error.cause
            raise self._never_ran(f"its QEMU refused to run it on host {self._host.config.name}: {why}") from error

    def _never_ran(self, why: str) -> NeverRanError:
        return NeverRanError(f"vm {self._vm.record.request.name}", why, "move it again")

    def _is_alive(self) -> bool:
        return self._vm.parts is not None and self._vm.parts.machine.is_running and not self._vm.parts.machine.is_ending

    def _is_certainly_halted(self) -> bool:
        """Whether nobody has told QEMU to run. The note is not flushed: it counts only as long as this machine has not rebooted."""
        try:
            return self._vm.folder.halted.read_text() == boot_id()
        except OSError:
            return False

    async def wait_disk_present(self) -> None:
        """As the port says. It asks QEMU: an agent before us may have attached the disk."""
        name, machine = self._vm.record.request.name, parts_of(self._vm).machine
        source = self._vm.record.peer
        await DiskArrival(name, source, machine, self._connect_disk, self._host.clock).wait_present()
        self._close_remote()

    async def _connect_disk(self) -> socket.socket:
        """Another way to the source's disk: through the memory process that there is now. QEMU, and the guest with it, stands still
        while it waits for the first word over it; so it gets it after that."""
        return await connect_answered(await listen_tunnel(self._vm, POSTCOPY_TUNNEL))

    async def run_hook(self, name: str) -> None:
        """As the port says."""
        if self._vm.guest is not None:
            await self._vm.guest.run_hook(name)

    async def sync_clock(self) -> None:
        """As the port says."""
        if self._vm.guest is not None:
            await self._vm.guest.channel.set_clock()

    async def what_ended(self) -> str:
        """As the port says."""
        return self._vm.what_ended()

    async def destroy(self) -> None:
        """As the port says. Of a VM that was ours, and is lost, record and output stay for its owner to see."""
        self._close_remote()
        if self._is_ours:
            await self._vm.unwatch()  # or it would report the end of QEMU as the reason
            await self._vm.give_up_parts()
        else:
            await self._vm.destroy()

    def _close_remote(self) -> None:
        if self._remote is not None:
            self._remote.close()
            self._remote = None


class TargetMemory:
    """`TargetMemoryPort` over the memory process."""

    def __init__(self, host: Host, vm: HostedVm) -> None:
        self._host = host
        self._vm = vm

    async def open_target(self, session: MigrationId) -> MemoryListener:
        """As the port says."""
        address = self._host.config.address
        memory = parts_of(self._vm).memory
        endpoint = await memory.open_target(session, address)
        await close_tunnels(memory)
        # The source offers its disk while it cuts, before it tells us so: whoever dials must find the tunnel.
        await self.tunnel_listen(POSTCOPY_TUNNEL)
        return MemoryListener(address, endpoint.port, self._host.server_name)

    async def apply_cut(self, root: str, postcopy: bool) -> tuple[Span, ...]:
        """As the port says."""
        return (await parts_of(self._vm).memory.apply_cut(root, postcopy=postcopy)).spans

    async def full_hash(self) -> str:
        """As the port says."""
        return await parts_of(self._vm).memory.full_hash()

    async def wait_all_present(self) -> None:
        """As the port says. A memory process that was killed meanwhile is replaced, and goes on where it was."""
        parts = parts_of(self._vm)
        while True:
            memory = parts.memory
            try:
                await memory.wait_all_present()
                return
            except UnavailableError:
                if not memory.is_closed:
                    raise
                await wait_replaced(self._vm.record.request.name, parts, memory)
            except LostError as error:
                name, source = self._vm.record.request.name, self._vm.record.peer
                raise LostError(f"memory of vm {name}", f"of host {source}: {error.cause}", f"see host {source}") from error

    async def silent_s(self) -> float:
        """As the port says."""
        return (await parts_of(self._vm).memory.status()).silent_s

    async def abort_target(self) -> None:
        """As the port says."""
        if self._vm.parts is not None:
            with contextlib.suppress(ArchitectError):
                await self._vm.parts.memory.abort_target()

    async def tunnel_listen(self, name: str) -> str:
        """As the port says."""
        return await listen_tunnel(self._vm, name)

    async def tunnel_connect(self, name: str, path: str) -> None:
        """As the port says."""
        await parts_of(self._vm).memory.tunnel_connect(name, path)
