"""A QEMU that is moved by QEMU: built from the same parts as ours (kernel, devices), but nobody tracks its memory.

The first one of a VM boots, and is set up as an agent would do it. Each one after it waits for QEMU's own migration, without `-S`:
it runs as soon as it can, and not when we say so. They run as root, because QEMU's post-copy needs userfaultfd; their guests' CPUs
have the priority of ours. Where storage is shared, source and target have the same overlay open; otherwise each has its
own. None is told to leave its configuration out of what it sends, as ours are: QEMU 10 would abort (json-writer.c).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import msgspec

from architect.conduit.tap import Tap
from architect.drafter.guest_channel import GuestChannel, LogRecord
from architect.drafter.guest_payloads import GuestConfig
from architect.drafter.machine import Machine
from architect.drafter.machine_launch import InheritedFiles
from architect.drafter.machine_options import BootFiles, DiskPaths, MachineOptions, MachineRecord, write_record
from architect.drafter.overlay import create_overlay
from architect.drafter.qemu_process import Jail, QemuProcess, spawn
from architect.model.image import ProcessConfig
from architect.model.vm_spec import DEFAULT_DISK_BYTES, DEFAULT_MTU, MachineSpec
from bench.qemu_network import BRIDGE_ADDRESS, BRIDGE_MAC, GUEST_ADDRESS, GUEST_MAC, bridged_tap

UID = 0
READY_TIMEOUT_S = 60.0


class QemuVm(msgspec.Struct, frozen=True):
    """What all QEMUs of one VM have in common. `folder` is the VM's own; its disk lies there, if both ends of a move share it."""

    folder: Path
    spec: MachineSpec
    boot: BootFiles
    base: Path
    process: ProcessConfig
    is_storage_shared: bool = True

    def overlay(self, name: str) -> Path:
        """The disk of the QEMU called `name`."""
        return (self.folder if self.is_storage_shared else self.folder / name) / "overlay.qcow2"

    async def make_overlay(self, name: str) -> None:
        """An empty disk for the QEMU called `name`. Raises: HostError: no space, or no qemu-img."""
        await create_overlay(self.overlay(name), max(DEFAULT_DISK_BYTES, self.base.stat().st_size))


class QemuGuest:
    """One QEMU of a VM and what belongs to it alone: memory, tap, folder. `end` it."""

    def __init__(self, machine: Machine, process: QemuProcess, resources: contextlib.ExitStack) -> None:
        self.machine = machine
        self._process = process
        self._resources = resources

    async def end(self) -> None:
        """Kill it. Idempotent."""
        await self.machine.kill()
        await _kill(self._process)
        self._resources.close()


async def start_first(vm: QemuVm, name: str) -> QemuGuest:
    """A new VM with its workload running, on an empty disk. On failure nothing is left running.

    Raises:
        ArchitectError: QEMU or the guest failed.
    """
    guest = await _start(vm, name, incoming=False)
    try:
        async with GuestChannel(guest.machine.channel_path, "benchmark's guest", _ignore) as channel:
            await channel.wait_ready(READY_TIMEOUT_S)
            await channel.configure(GuestConfig("bench", GUEST_ADDRESS, GUEST_MAC, DEFAULT_MTU, (), BRIDGE_ADDRESS, BRIDGE_MAC))
            await channel.start(vm.process)
    except BaseException:
        await asyncio.shield(guest.end())
        raise
    return guest


async def start_target(vm: QemuVm, name: str) -> QemuGuest:
    """A QEMU that waits for `migrate-incoming` and runs the guest by itself afterwards. On failure nothing is left running.

    Raises:
        ArchitectError: QEMU did not start; see its qemu.log.
    """
    return await _start(vm, name, incoming=True)


async def _start(vm: QemuVm, name: str, *, incoming: bool) -> QemuGuest:
    (vm.folder / name).mkdir()
    if not (incoming and vm.is_storage_shared):
        await vm.make_overlay(name)
    with contextlib.ExitStack() as stack:
        options = msgspec.structs.replace(_options(vm, name, stack), incoming=incoming)
        with InheritedFiles(options) as files:
            command = _without(_without(list(files.command), "-S"), "-global", "migration.send-configuration=off")
            process = spawn(command, Jail(UID, None), files.numbers, options.run_dir, options.run_dir / "qemu.log")
        try:
            write_record(options.run_dir, MachineRecord(options.name, process.identity, options.spec, False, False))
            machine = await Machine.reattach(options.run_dir)
            process.calm()
        except BaseException:
            await asyncio.shield(_kill(process))
            raise
        return QemuGuest(machine, process, stack.pop_all())


def _without(command: list[str], *words: str) -> list[str]:
    """`command` without these words, which stand in it one after the other, if they do."""
    for at in range(len(command)):
        if tuple(command[at : at + len(words)]) == words:
            return command[:at] + command[at + len(words) :]
    return command


def _options(vm: QemuVm, name: str, stack: contextlib.ExitStack) -> MachineOptions:
    run_dir = vm.folder / name
    ram = os.memfd_create(f"bench-{name}", os.MFD_CLOEXEC)
    stack.callback(os.close, ram)
    os.ftruncate(ram, vm.spec.memory_bytes)
    tap: Tap = stack.enter_context(bridged_tap(f"bench-{name}"))
    return MachineOptions(
        name=f"bench-{name}", run_dir=run_dir, spec=vm.spec, boot=vm.boot, ram_fd=ram, mac=GUEST_MAC,
        disk=DiskPaths(vm.overlay(name), vm.base), tap_fd=tap.fd, uid=UID,
    )  # fmt: skip


async def _kill(process: QemuProcess) -> None:
    process.kill()
    with contextlib.suppress(TimeoutError):
        await process.wait(10)
    process.close()


async def _ignore(record: LogRecord) -> None:
    """What the guest has to say, it says to whoever asks (guest_contact)."""
