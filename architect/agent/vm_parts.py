"""The parts of one VM on this host: memory process, tap, disk, machine; made in order, undone in reverse, found again.

Nothing here decides; `hosted_vm` and the handover's adapters do. Every function may be repeated.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from architect.agent.host import Host
from architect.agent.vm_record import VmFolder
from architect.conduit.host_datapath import VmPort
from architect.conduit.layout import PortState
from architect.drafter.machine import Machine, MachineStartError, destroy_machine, find_machine
from architect.drafter.machine_options import DiskPaths, MachineOptions
from architect.drafter.overlay import create_overlay
from architect.drafter.template import TemplateOptions, ensure_template, start_from_template
from architect.errors import ArchitectError, HostError, NotFoundError, UnavailableError
from architect.model.vm_spec import VmSpec
from architect.silo.memory_client import MemoryOptions, MemoryProcess, MemoryStartError
from architect.silo.memory_role import MemoryRole

GENERATION_ID = "00000000-0000-0000-0000-000000000001"


class PartEndedError(HostError):
    """A process of the VM ended by itself while the VM was being made. `words` say which, and how."""

    def __init__(self, vm: str, words: str) -> None:
        super().__init__(
            f"vm {vm}", f"{words} while the VM was being made", "try again; see the host's kernel log for who ended it"
        )
        self.words = words


def ended_words(host: str, vm: str, memory: str, qemu: str) -> str:
    """Which of a VM's processes have ended by themselves, and how, by the ends of each in words; "" if none has."""
    ends = (("QEMU", qemu), ("the memory process", memory))
    return ", and ".join(f"{what} of vm {vm} on host {host} {how}" for what, how in ends if how)


@dataclass
class VmParts:
    """What runs for one VM on this host."""

    memory: MemoryProcess
    machine: Machine

    async def detach(self) -> None:
        """Let go of the processes, which run on."""
        with contextlib.suppress(ArchitectError):
            await self.machine.detach()
        await self.memory.close()


async def start_fresh(host: Host, folder: VmFolder, spec: VmSpec) -> VmParts:
    """Make the VM from its template, halted, its guest waiting to be configured. On failure nothing is left but the folder."""
    options = TemplateOptions(spec.machine, host.boot, host.config.vm_uid)
    template = await ensure_template(options, host.cache_dir / "templates")

    async def start(machine: MachineOptions) -> Machine:
        return await start_from_template(template, machine)

    return await _start(host, folder, spec, MemoryRole.FRESH, start)


async def start_incoming(host: Host, folder: VmFolder, spec: VmSpec) -> VmParts:
    """Make the VM for a move, waiting for memory, disk and device state. On failure nothing is left but the folder."""
    return await _start(host, folder, spec, MemoryRole.INCOMING, Machine.start)


async def _start(
    host: Host, folder: VmFolder, spec: VmSpec, role: MemoryRole, start: Callable[[MachineOptions], Awaitable[Machine]]
) -> VmParts:
    memory: MemoryProcess | None = None
    machine: Machine | None = None
    try:
        memory = await _spawn_memory(host, folder, spec)
        with _memfd(memory) as ram_fd:
            machine = await start(await _machine_options(host, folder, spec, ram_fd, incoming=role is MemoryRole.INCOMING))
        await memory.attach(machine.qemu_pid, role)
    except BaseException as error:
        try:
            if isinstance(error, ArchitectError) and (words := await _what_ended(host, spec, error, memory, machine)):
                raise PartEndedError(spec.request.name, words) from error
            raise
        finally:
            await asyncio.shield(_undo_start(memory, machine))
    return VmParts(memory, machine)


async def _what_ended(
    host: Host, spec: VmSpec, error: ArchitectError, memory: MemoryProcess | None, machine: Machine | None
) -> str:
    """What a start that failed has to do with it, before undoing it ends the rest."""
    how_memory = error.how if isinstance(error, MemoryStartError) else ""
    how_qemu = error.how if isinstance(error, MachineStartError) else ""
    if memory is not None:
        how_memory = await memory.wait_ending()
    if machine is not None:
        how_qemu = machine.how_it_ended()
    return ended_words(host.config.name, spec.request.name, how_memory, how_qemu)


async def _undo_start(memory: MemoryProcess | None, machine: Machine | None) -> None:
    try:
        if machine is not None:
            await machine.kill()
    finally:
        if memory is not None:
            await _end_memory(memory)


async def find_parts(host: Host, folder: VmFolder, spec: VmSpec) -> VmParts:
    """The parts that an agent before us started.

    The memory process first: without one, QEMU may wait for a page and answer nobody.

    Raises:
        NotFoundError: QEMU has ended.
        HostError, UnavailableError: QEMU runs, but cannot be reached; or its memory process has ended and cannot be replaced.
    """
    if (process := find_machine(folder.machine)) is None:
        raise NotFoundError(f"vm {spec.request.name}", "its QEMU has ended", "see the VM's qemu.log")
    process.close()
    memory = await replace_memory(host, folder, spec)
    try:
        machine = await Machine.reattach(folder.machine)
        try:
            host.datapath.adopt(spec.request.vni, machine.qemu_pid)
        except BaseException:
            await machine.detach()
            raise
    except BaseException:
        await memory.close()
        raise
    return VmParts(memory, machine)


async def replace_memory(host: Host, folder: VmFolder, spec: VmSpec) -> MemoryProcess:
    """The VM's memory process, whose QEMU runs: the one that there is, or one that goes on where it was killed."""
    try:
        return await MemoryProcess.reattach(folder.memory)
    except UnavailableError:
        return await _spawn_memory(host, folder, spec)


async def destroy_parts(host: Host, folder: VmFolder, vni: int, parts: VmParts | None, *, keep_log: bool) -> None:
    """End everything of the VM on this host and delete it, but for record and output log if `keep_log`. Idempotent."""
    if parts is not None:
        await parts.machine.kill()
    else:
        await destroy_machine(folder.machine)
    memory = parts.memory if parts is not None else None
    if memory is None:
        with contextlib.suppress(ArchitectError):
            memory = await MemoryProcess.reattach(folder.memory)
    if memory is not None:
        await _end_memory(memory)
    host.datapath.remove_vm(vni)
    await asyncio.to_thread(_delete, folder, keep_log)


def _delete(folder: VmFolder, keep_log: bool) -> None:
    if not keep_log:
        shutil.rmtree(folder.path, ignore_errors=True)
        return
    for path in (folder.machine, folder.memory):
        shutil.rmtree(path, ignore_errors=True)
    for overlay in folder.path.glob("overlay*"):
        overlay.unlink(missing_ok=True)


async def _spawn_memory(host: Host, folder: VmFolder, spec: VmSpec) -> MemoryProcess:
    options = MemoryOptions(folder.memory, Path(host.config.tls_dir), spec.machine.memory_bytes)
    return await MemoryProcess.spawn(options, host.memory_server)


async def _end_memory(memory: MemoryProcess) -> None:
    with contextlib.suppress(ArchitectError):
        await memory.shutdown()
    with contextlib.suppress(ProcessLookupError):
        os.kill(memory.pid, signal.SIGKILL)


@contextlib.contextmanager
def _memfd(memory: MemoryProcess) -> Iterator[int]:
    descriptor = memory.memfd()
    try:
        yield descriptor
    finally:
        os.close(descriptor)


async def _machine_options(host: Host, folder: VmFolder, spec: VmSpec, ram_fd: int, *, incoming: bool = False) -> MachineOptions:
    request = spec.request
    base = host.bases.get(spec.base.digest)
    if base is None:
        raise NotFoundError(f"base disk {spec.base.digest[:12]}", f"host {host.config.name} lacks it", "run the image again")
    await create_overlay(folder.overlay, max(request.disk_bytes, spec.base.size_bytes))
    _give_away(folder.overlay, host.config.vm_uid)
    folder.machine.mkdir(parents=True, exist_ok=True)
    host.datapath.remove_vm(request.vni)
    port = VmPort(request.vni, request.address, spec.mac, request.mtu, host.config.edge_address)
    tap = host.datapath.add_vm(port, PortState.BLOCKED)
    return MachineOptions(
        name=spec.id,
        run_dir=folder.machine,
        spec=spec.machine,
        boot=host.boot,
        ram_fd=ram_fd,
        mac=spec.mac,
        disk=DiskPaths(folder.overlay, base, request.host_fsync),
        tap_fd=tap.fd,
        incoming=incoming,
        vm_generation_id=GENERATION_ID,
        uid=host.config.vm_uid,
        shim=host.shim,
        label=f"QEMU of vm {request.name} on host {host.config.name}",
    )


def _give_away(path: Path, uid: int) -> None:
    try:
        os.chown(path, uid, uid)
        path.chmod(0o600)
    except OSError as error:
        raise HostError(f"disk {path}", str(error), "run the agent as root") from error
