"""Their side of the comparison: a VM that QEMU moves from one process to the next, by one of its engines at a time."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator
from pathlib import Path

from architect.errors import ArchitectError
from bench.guest_contact import GUEST_PORT, GuestContact
from bench.qemu_guest import QemuGuest, QemuVm, start_first, start_target
from bench.qemu_migration import QemuMigration
from bench.qemu_network import GUEST_ADDRESS
from bench.results import Engine, EngineSetup, Limits, Move

FIRST_PORT = 4400
CONSOLE_LINES = 12
NAME = "the VM of QEMU"


class QemuMover:
    """Moves the VM into a fresh process each time, and ends the one before."""

    def __init__(self, vm: QemuVm, guest: QemuGuest, contact: GuestContact, limits: Limits) -> None:
        self._vm = vm
        self._guest = guest
        self._limits = limits
        self._numbers = itertools.count(1)
        self.setups: dict[Engine, EngineSetup] = {}
        self.contact = contact

    async def move(self, engine: Engine) -> Move:
        """One migration. After a failure the VM runs on where it was, or a new one runs in its place.

        Raises:
            ArchitectError: it failed.
        """
        number, began_s = next(self._numbers), time.time()
        target = await start_target(self._vm, f"m{number}")
        moves_disk = not self._vm.is_storage_shared
        migration = QemuMigration(engine, self._guest.machine, target.machine, self._limits, moves_disk=moves_disk)
        try:
            move = await migration.run(FIRST_PORT + number, began_s)
        except ArchitectError:
            await target.end()
            await migration.give_up()
            raise
        except BaseException:
            await asyncio.shield(target.end())
            raise
        finally:
            if migration.setup is not None:
                self.setups[engine] = migration.setup
        source, self._guest = self._guest, target
        await source.end()
        return move

    async def last_words(self) -> str:
        """How the VM's process stands, and what the guest's kernel said last."""
        machine = self._guest.machine
        try:
            status = await machine.status()
        except ArchitectError as error:
            status = str(error)
        console, log = (_end_of(machine.run_dir / name) for name in ("console.log", "qemu.log"))
        return f"QEMU is {status}; its log: {log}; its guest's console: {console}"

    async def revive(self) -> None:
        """Start the VM anew if it does not answer.

        Raises:
            ArchitectError: it cannot be started.
        """
        if not await self.contact.is_well():
            await self._guest.end()
            self._guest = await start_first(self._vm, f"r{next(self._numbers)}")
            await self.contact.wait_ready()

    async def end(self) -> None:
        """End whichever process has the VM."""
        await self._guest.end()


@contextlib.asynccontextmanager
async def running_qemu(vm: QemuVm, limits: Limits) -> AsyncIterator[QemuMover]:
    """A VM for the length of a block, on the bridge of this network namespace."""
    vm.folder.mkdir(parents=True)
    guest = await start_first(vm, "first")
    mover: QemuMover | None = None
    try:
        async with GuestContact(NAME, GUEST_ADDRESS, GUEST_PORT) as contact:
            mover = QemuMover(vm, guest, contact, limits)
            yield mover
    finally:
        await asyncio.shield(mover.end() if mover is not None else guest.end())


def _end_of(path: Path) -> str:
    lines = path.read_text(errors="replace").split("\n")[-CONSOLE_LINES:]
    return " | ".join(line.strip() for line in lines if line.strip()) or "silent"
