"""Real QEMUs under memory processes: two hops, by pre-copy and by post-copy, with the device state between."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from architect.drafter.machine import Machine
from architect.drafter.machine_options import BootFiles
from architect.silo.memory_client import MemoryProcess
from architect.silo.memory_role import MemoryRole
from tests.host import machine_rig
from tests.host.memory_rig import ADDRESS, Rig, rig, skip_unless_able

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def boot() -> BootFiles:
    machine_rig.skip_unless_able()
    skip_unless_able()
    return machine_rig.counting_guest()


class Place:
    """A machine and its memory process."""

    def __init__(self, machine: Machine, memory: MemoryProcess) -> None:
        self.machine, self.memory, self.folder = machine, memory, machine.run_dir


@contextlib.asynccontextmanager
async def place(made: Rig, boot: BootFiles, folder: Path, name: str, *, incoming: bool = False) -> AsyncIterator[Place]:
    memory = await MemoryProcess.spawn(made.options(name, tls="alpha" if name == "alpha" else "beta"), made.server)
    ram_fd = memory.memfd()
    try:
        options = machine_rig.options(boot, folder / name, ram_fd, incoming=incoming, shim=machine_rig.SHIM, uid=64055)
        async with machine_rig.running(options) as machine:
            await memory.attach(machine.qemu_pid, MemoryRole.INCOMING if incoming else MemoryRole.FRESH)
            yield Place(machine, memory)
    finally:
        os.close(ram_fd)
        await memory.shutdown()


async def hand_over(made: Rig, source: Place, target: Place, *, postcopy: bool, session: str) -> None:
    """Memory and device state; the target runs afterwards."""
    endpoint = await target.memory.open_target(session, ADDRESS)
    options = made.source_options(endpoint.port, session)
    await source.memory.open_source(options)
    await source.memory.bulk()
    await source.memory.round()
    await source.machine.pause()
    cut = await source.memory.cut(postcopy=postcopy)
    await target.memory.apply_cut(cut.root, postcopy=postcopy)
    if not postcopy:
        assert cut.root == await source.memory.full_hash() == await target.memory.full_hash()
    await target.machine.load_device_state(await source.machine.save_device_state())
    stood_at = machine_rig.alive(source.folder)
    await target.machine.resume()
    if postcopy:
        served = await source.memory.serve_until_done(60)
        assert (await target.memory.wait_all_present(60)).root == served.root == await source.memory.full_hash()
    await source.memory.end_source()
    await machine_rig.wait_alive(target.folder, stood_at + 10)
    assert await source.machine.status() == "paused"


@pytest.mark.parametrize("postcopy", [False, True], ids=["precopy", "postcopy"])
def test_a_machine_moves_twice_and_its_guest_goes_on(boot: BootFiles, tmp_path: Path, postcopy: bool) -> None:
    tmp_path.chmod(0o755)

    async def scenario() -> None:
        async with place(made, boot, tmp_path, "alpha") as first:
            await machine_rig.order(first.machine, "count")
            await machine_rig.wait_alive(first.folder, 5)
            async with place(made, boot, tmp_path, "beta", incoming=True) as second:
                await hand_over(made, first, second, postcopy=postcopy, session="one")
                async with place(made, boot, tmp_path, "gamma", incoming=True) as third:
                    await hand_over(made, second, third, postcopy=not postcopy, session="two")

    with rig(machine_rig.SPEC.memory_bytes) as made:
        asyncio.run(scenario())
