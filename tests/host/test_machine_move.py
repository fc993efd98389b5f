"""Two real QEMUs: a machine moves with memory, disk and device state, in both ways of a disk, and loses nothing when that fails."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from architect.agent.move_source import SourceMachine
from architect.drafter.block_node import find_overlay, nodes_by_name
from architect.drafter.disk_export import start_incoming_export, stop_exports
from architect.drafter.disk_mirror import DiskMirror
from architect.drafter.disk_postcopy import (
    JOB,
    StreamTrouble,
    attach_remote,
    complete_stream,
    reattach_remote,
    resume_stream,
    start_stream,
    stream_trouble,
)
from architect.drafter.frozen_file import freeze_overlay
from architect.drafter.machine import Machine
from architect.drafter.machine_event import DiskFailed
from architect.drafter.machine_options import BootFiles
from architect.drafter.overlay import create_overlay
from architect.errors import ConflictError, HostError, OutcomeUnknownError
from architect.model.sizes import GIB, MIB
from architect.silo.exact_bytes import receive_exactly
from architect.silo.nbd_server import ServedFile
from tests.host import machine_rig as rig
from tests.host.file_systems import ext4, fail_writes, skip_without_loop_devices, tmpfs

pytestmark = pytest.mark.host

OWN = "qemu-system-x86_64"
OTHER = rig.SECOND_QEMU
DISK = "/machine/peripheral/disk0/virtio-backend"
FAILED_TRIES = 8
LARGE_DISK_BYTES = 300 * GIB  # QEMU would keep the index of 256
PAIRS = [(OWN, OWN), (OWN, OTHER), (OTHER, OWN)]


@pytest.fixture(scope="module")
def boot() -> BootFiles:
    rig.skip_unless_able()
    return rig.counting_guest()


class Place:
    """One machine with its memory and its folder."""

    def __init__(self, machine: Machine, ram_fd: int) -> None:
        self.machine = machine
        self.ram_fd = ram_fd
        self.folder = machine.run_dir


@contextlib.asynccontextmanager
async def place(boot: BootFiles, folder: Path, *, overlay: Path | None = None, **changes: Any) -> AsyncIterator[Place]:
    """A machine; with a copy of `overlay`, or an empty one."""
    folder.mkdir()
    if overlay is not None:
        shutil.copyfile(overlay, folder / "overlay.qcow2")
    else:
        await create_overlay(folder / "overlay.qcow2", rig.DISK_BYTES)
    with rig.ram() as ram_fd:
        options = rig.options(boot, folder, ram_fd, disk=rig.disk(folder), **changes)
        async with rig.running(options) as machine:
            yield Place(machine, ram_fd)


class BusyGuest:
    """A guest that writes and checks its disk, as it was after its boot: its parts, from which any number of machines go on."""

    def __init__(self, boot: BootFiles, folder: Path, ram_fd: int) -> None:
        self._boot = boot
        self._folder = folder
        self._ram_fd = ram_fd
        self._state = b""
        self._stood_at = 0

    async def boot(self) -> None:
        """Boot it, and keep what it is then."""
        async with place(self._boot, self._folder / "booted") as first:
            await rig.order(first.machine, "disk")
            await rig.wait_alive(first.folder, 15)
            await first.machine.pause()
            self._state = await first.machine.save_device_state()
            rig.copy_ram(first.ram_fd, self._ram_fd)
            shutil.copyfile(first.folder / "overlay.qcow2", self._folder / "overlay.qcow2")
            self._stood_at = rig.alive(first.folder)

    @contextlib.asynccontextmanager
    async def running(self, folder: Path, *, more_disk: bool = False, **changes: Any) -> AsyncIterator[Place]:
        """One that runs. `more_disk`: some MiB are written where it does not look, so that a mirror is slow to catch up."""
        overlay = self._folder / "overlay.qcow2"
        if more_disk:
            overlay = self._folder / "more.qcow2"
            shutil.copyfile(self._folder / "overlay.qcow2", overlay)
            command = ("qemu-io", "-c", "write -P 7 500M 8M", overlay)
            await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)
        async with place(self._boot, folder, overlay=overlay, incoming=True, **changes) as found:
            rig.copy_ram(self._ram_fd, found.ram_fd)
            await found.machine.load_device_state(self._state)
            await found.machine.resume()
            await rig.wait_alive(folder, self._stood_at + 2)
            yield found


@pytest.fixture(scope="module")
def busy(boot: BootFiles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BusyGuest]:
    """Booted once: a boot takes TCG longer than most tests take otherwise."""
    with rig.ram() as ram_fd:
        guest = BusyGuest(boot, tmp_path_factory.mktemp("busy"), ram_fd)
        asyncio.run(guest.boot())
        yield guest


async def hand_over(source: Place, target: Place) -> int:
    """Device state and memory, source paused; returns where the guest stood."""
    state = await source.machine.save_device_state()
    rig.copy_ram(source.ram_fd, target.ram_fd)
    await target.machine.load_device_state(state)
    assert await target.machine.status() == "paused"
    await target.machine.resume()
    assert await source.machine.status() == "paused"
    return rig.alive(source.folder)


async def mirror_to(source: Place, target: Place) -> DiskMirror:
    path = await start_incoming_export(target.machine)
    mirror = DiskMirror(source.machine)
    with rig.connect(path) as connection:
        await mirror.start(connection.fileno())
    await mirror.wait_ready(60)
    return mirror


@contextlib.contextmanager
def served(file: ServedFile) -> Iterator[socket.socket]:
    """A connection over which the file is read, as a memory process serves it."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with theirs, contextlib.suppress(OSError):
            file.serve(lambda count: receive_exactly(theirs, count), theirs.sendall)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield ours
    finally:
        ours.close()  # QEMU has a duplicate: the server goes on until QEMU, too, has let go of it


async def assert_guest_is_well(at: Place, stood_at: int) -> None:
    await rig.wait_alive(at.folder, stood_at + 12)
    said = rig.console(at.folder)
    assert "CORRUPT" not in said
    assert "FAIL" not in said


def skip_without(binary: str) -> None:
    if not binary:
        pytest.skip("needs a second QEMU, named by ARCHITECT_SECOND_QEMU")


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=["same", "to-other", "from-other"])
def test_a_machine_moves_with_its_disk_mirrored(boot: BootFiles, busy: BusyGuest, tmp_path: Path, first: str, second: str) -> None:
    skip_without(first)
    skip_without(second)

    async def scenario() -> None:
        async with busy.running(tmp_path / "a", binary=first) as source:
            async with place(boot, tmp_path / "b", incoming=True, binary=second) as target:
                mirror = await mirror_to(source, target)
                progress = await mirror.progress()
                assert progress is not None
                assert progress.is_ready
                await source.machine.pause()
                await asyncio.gather(mirror.finish(), source.machine.save_device_state())  # as in the pause of a move
                assert await source.machine.qmp.execute("query-block-jobs") == []
                await stop_exports(target.machine)
                await stop_exports(target.machine)
                stood_at = await hand_over(source, target)
                await source.machine.kill()
                await assert_guest_is_well(target, stood_at)

    asyncio.run(scenario())


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=["same", "to-other", "from-other"])
def test_a_machine_runs_before_its_disk_has_arrived_and_moves_on_afterwards(
    boot: BootFiles, busy: BusyGuest, tmp_path: Path, first: str, second: str
) -> None:
    skip_without(first)
    skip_without(second)

    async def scenario() -> None:
        async with busy.running(tmp_path / "a", binary=first) as source, place(boot, tmp_path / "c", incoming=True) as third:
            async with place(boot, tmp_path / "b", incoming=True, binary=second) as target:
                mirror = await mirror_to(source, target)  # half done: what it brought is dropped
                await source.machine.pause()
                await mirror.cancel()
                await stop_exports(target.machine)
                fresh = target.folder / "fresh.qcow2"
                await create_overlay(fresh, rig.DISK_BYTES)
                with served(ServedFile(str(await freeze_overlay(source.machine)))) as connection:
                    await attach_remote(target.machine, connection.fileno(), fresh)
                (target.folder / "overlay.qcow2").unlink()
                stood_at = await hand_over(source, target)
                await source.machine.kill()
                await rig.wait_alive(target.folder, stood_at + 3)  # reads what is still in the source's file
                await start_stream(target.machine)
                await start_stream(target.machine)
                await complete_stream(target.machine, 60)
                await complete_stream(target.machine, 60)
                await assert_guest_is_well(target, stood_at + 3)
                nodes = await nodes_by_name(target.machine.qmp)
                assert not [name for name in nodes if "remote" in name or name == "overlay"]
                assert (await find_overlay(target.machine.qmp, "b")).name == "overlay-1"

                mirror = await mirror_to(target, third)
                await target.machine.pause()
                await mirror.finish()
                await stop_exports(third.machine)
                stood_at = await hand_over(target, third)
                await target.machine.kill()
                await assert_guest_is_well(third, stood_at)

    asyncio.run(scenario())


def test_a_mirror_that_is_cancelled_leaves_nothing_and_the_guest_runs_on(boot: BootFiles, busy: BusyGuest, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with busy.running(tmp_path / "a") as source, place(boot, tmp_path / "b", incoming=True) as target:
            before = set(await nodes_by_name(source.machine.qmp))
            for _ in range(2):
                mirror = await mirror_to(source, target)
                await mirror.cancel()
                await mirror.cancel()
                await stop_exports(target.machine)
            assert set(await nodes_by_name(source.machine.qmp)) == before
            assert await source.machine.qmp.execute("query-block-jobs") == []
            await assert_guest_is_well(source, rig.alive(source.folder))

    asyncio.run(scenario())


def test_a_mirror_that_has_ended_leaves_nothing_if_the_guest_stays(boot: BootFiles, busy: BusyGuest, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with busy.running(tmp_path / "a") as source, place(boot, tmp_path / "b", incoming=True) as target:
            before = set(await nodes_by_name(source.machine.qmp))
            for _ in range(2):
                mirror = await mirror_to(source, target)
                await source.machine.pause()
                await mirror.finish()
                await mirror.cancel()
                await source.machine.resume()
                await stop_exports(target.machine)
            assert set(await nodes_by_name(source.machine.qmp)) == before
            await assert_guest_is_well(source, rig.alive(source.folder))

    asyncio.run(scenario())


def test_a_mirror_that_has_not_caught_up_does_not_end_well(boot: BootFiles, busy: BusyGuest, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            busy.running(tmp_path / "a", more_disk=True) as source,
            place(boot, tmp_path / "b", incoming=True) as target,
        ):
            mirror = DiskMirror(source.machine)
            with rig.connect(await start_incoming_export(target.machine)) as connection:
                await mirror.start(connection.fileno(), speed_bytes_s=1)
            await source.machine.pause()
            with pytest.raises(HostError, match="not caught up"):
                await mirror.finish()
            await mirror.cancel()
            await source.machine.resume()
            await assert_guest_is_well(source, rig.alive(source.folder))

    asyncio.run(scenario())


def test_a_peer_that_vanishes_fails_the_mirror_by_name_and_the_guest_runs_on(
    boot: BootFiles, busy: BusyGuest, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with busy.running(tmp_path / "a") as source:
            async with place(boot, tmp_path / "b", incoming=True) as target:
                mirror = await mirror_to(source, target)
                await target.machine.kill()
            await rig.wait_alive(source.folder, rig.alive(source.folder) + 12)
            await source.machine.pause()
            with pytest.raises(HostError):
                await mirror.finish()
            await mirror.cancel()
            await source.machine.resume()
            await assert_guest_is_well(source, rig.alive(source.folder))

    asyncio.run(scenario())


def test_a_peer_that_is_silent_at_the_start_of_a_mirror_is_cut_off_and_the_guest_runs_on(busy: BusyGuest, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with busy.running(tmp_path / "a") as source:
            before = set(await nodes_by_name(source.machine.qmp))
            ours, silent = socket.socketpair()
            with ours, silent, pytest.raises(OutcomeUnknownError):
                await DiskMirror(source.machine).start(ours.fileno())
            assert set(await nodes_by_name(source.machine.qmp)) == before
            await assert_guest_is_well(source, rig.alive(source.folder))

    asyncio.run(scenario())


def test_a_peer_that_falls_silent_under_a_mirror_holds_up_a_pause_only_until_it_is_cut_off(
    boot: BootFiles, busy: BusyGuest, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with busy.running(tmp_path / "a") as source, place(boot, tmp_path / "b", incoming=True) as target:
            mirror = await mirror_to(source, target)
            os.kill(target.machine.qemu_pid, signal.SIGSTOP)
            await rig.wait_alive(source.folder, rig.alive(source.folder) + 12)  # the guest does not wait for the mirror
            leaving = SourceMachine(cast("Any", SimpleNamespace(parts=SimpleNamespace(machine=source.machine))))
            with pytest.raises(OutcomeUnknownError):
                await leaving.pause()
            await leaving.resume()  # as a move is undone: the guest first
            await mirror.cancel()
            await assert_guest_is_well(source, rig.alive(source.folder))

    asyncio.run(scenario())


def test_disks_of_different_sizes_are_refused_and_nothing_is_left(boot: BootFiles, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with place(boot, tmp_path / "a") as source:
            folder = tmp_path / "b"
            folder.mkdir()
            await create_overlay(folder / "overlay.qcow2", rig.DISK_BYTES // 2)
            with rig.ram() as ram_fd:
                async with rig.running(rig.options(boot, folder, ram_fd, disk=rig.disk(folder), incoming=True)) as target:
                    path = await start_incoming_export(target)
                    with rig.connect(path) as connection, pytest.raises(HostError):
                        await DiskMirror(source.machine).start(connection.fileno())
                    await DiskMirror(source.machine).cancel()
            assert await source.machine.status() == "running"

    asyncio.run(scenario())


def test_the_file_of_a_running_guest_is_not_offered_and_that_of_a_stopped_one_is_found_by_any_name(
    boot: BootFiles, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with place(boot, tmp_path / "a") as source:
            with pytest.raises(ConflictError):
                await freeze_overlay(source.machine)
            await source.machine.pause()
            assert await freeze_overlay(source.machine) == source.folder / "overlay.qcow2"
            (source.folder / "overlay.qcow2").rename(source.folder / "renamed.qcow2")
            assert await freeze_overlay(source.machine) == source.folder / "renamed.qcow2"
            (source.folder / "renamed.qcow2").unlink()
            with pytest.raises(HostError, match="no name any more"):
                await freeze_overlay(source.machine)
            await source.machine.resume()

    asyncio.run(scenario())


def test_a_disk_whose_index_the_host_cannot_write_is_not_called_whole(boot: BootFiles, tmp_path: Path) -> None:
    async def scenario(small: Path) -> None:
        overlay = small / "overlay.qcow2"
        await create_overlay(overlay, rig.DISK_BYTES)
        disk = msgspec.structs.replace(rig.disk(tmp_path), overlay=overlay)
        with rig.ram() as ram_fd:
            async with rig.running(rig.options(boot, tmp_path / "a", ram_fd, disk=disk)) as machine:
                await machine.pause()
                assert await freeze_overlay(machine) == overlay
                write = {"command-line": f'qemu-io -d {DISK} "write -P 0x5a 0 64k"'}
                await machine.qmp.execute("human-monitor-command", write)  # the data is in the file, its index in QEMU
                fail_writes(small)
                await machine.pause()  # writes the index, too, and says nothing of what it could not write
                with pytest.raises(HostError, match="Input/output error"):
                    await freeze_overlay(machine)

    skip_without_loop_devices()
    with ext4(tmp_path / "small", tmp_path / "small.ext4", 8 * MIB) as small:
        asyncio.run(scenario(small))


def test_a_remote_that_is_no_overlay_leaves_the_disk_as_it_was(boot: BootFiles, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with place(boot, tmp_path / "a", incoming=True) as other, place(boot, tmp_path / "b", incoming=True) as target:
            before = set(await nodes_by_name(target.machine.qmp))
            fresh = target.folder / "fresh.qcow2"
            await create_overlay(fresh, rig.DISK_BYTES)
            with rig.connect(await start_incoming_export(other.machine)) as connection, pytest.raises(HostError):
                await attach_remote(target.machine, connection.fileno(), fresh)
            assert set(await nodes_by_name(target.machine.qmp)) == before

    asyncio.run(scenario())


def test_a_guest_whose_blocks_are_out_of_reach_waits_until_there_is_another_way_and_never_sees_the_error(
    boot: BootFiles, busy: BusyGuest, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with busy.running(tmp_path / "a") as source, place(boot, tmp_path / "b", incoming=True) as target:
            await source.machine.pause()
            fresh = target.folder / "fresh.qcow2"
            await create_overlay(fresh, rig.DISK_BYTES)
            file = ServedFile(str(await freeze_overlay(source.machine)))
            with served(file) as connection:
                await attach_remote(target.machine, connection.fileno(), fresh)
                async with contextlib.aclosing(target.machine.events()) as events:
                    stood_at = await hand_over(source, target)
                    connection.shutdown(socket.SHUT_RDWR)
                    async with asyncio.timeout(60):
                        async for event in events:
                            if isinstance(event, DiskFailed):
                                assert event.stopped
                                break
            assert await target.machine.status() == "io-error"
            with pytest.raises(HostError, match="index of it cannot be read"):
                await start_stream(target.machine)
            with served(file) as connection:
                await reattach_remote(target.machine, connection.fileno())
                await start_stream(target.machine, speed_bytes_s=1 << 20)
                connection.shutdown(socket.SHUT_RDWR)
            async with asyncio.timeout(30):
                while await stream_trouble(target.machine) is not StreamTrouble.BROKEN:  # noqa: ASYNC110 all there is
                    await asyncio.sleep(0.05)
            await target.machine.resume()  # takes the stream's error away and sets nothing going; the guest stops again
            assert await stream_trouble(target.machine) is StreamTrouble.STOPPED
            for _ in range(2):  # from a stream that stands, and from a connection that nothing has used yet
                with served(file) as connection:
                    await reattach_remote(target.machine, connection.fileno())
            await target.machine.resume()
            await start_stream(target.machine, speed_bytes_s=1 << 16)
            await target.machine.qmp.execute("block-job-pause", {"device": JOB})
            async with asyncio.timeout(30):  # it stands without an error
                while await stream_trouble(target.machine) is not StreamTrouble.STOPPED:  # noqa: ASYNC110 all there is
                    await asyncio.sleep(0.05)
            await target.machine.qmp.execute("block-job-set-speed", {"device": JOB, "speed": 0})
            await resume_stream(target.machine)
            await complete_stream(target.machine, 60)
            with served(file) as connection:
                await reattach_remote(target.machine, connection.fileno())
            assert not [name for name in await nodes_by_name(target.machine.qmp) if "remote" in name]
            await source.machine.kill()
            await assert_guest_is_well(target, stood_at)

    asyncio.run(scenario())


async def read_disk(target: Place, pattern: int, at: str) -> str:
    """Read 64 KiB as the guest's device would; what QEMU says of it: nothing if every byte is `pattern`."""
    log = target.folder / "qemu.log"
    before = len(log.read_bytes())
    read = {"command-line": f'qemu-io -d {DISK} "read -q -P {pattern} {at} 64k"'}
    await target.machine.qmp.execute("human-monitor-command", read)
    return log.read_bytes()[before:].decode().strip()


@pytest.mark.parametrize("binary", [OWN, OTHER], ids=["own", "other"])
def test_no_read_of_a_disk_whose_source_is_gone_is_answered_with_bytes_that_nobody_read(
    boot: BootFiles, tmp_path: Path, binary: str
) -> None:
    skip_without(binary)
    source, failed = tmp_path / "source.qcow2", "read failed: Input/output error"

    async def scenario() -> None:
        await create_overlay(source, LARGE_DISK_BYTES)
        write = ("qemu-io", "-c", "write -P 0x11 0 4M", "-c", "write -P 0x5a 1700M 1M", source)
        await asyncio.to_thread(subprocess.run, write, check=True, capture_output=True)
        file = ServedFile(str(source))
        async with place(boot, tmp_path / "b", overlay=source, paused=True, binary=binary) as target:
            fresh = target.folder / "fresh.qcow2"
            await create_overlay(fresh, LARGE_DISK_BYTES)
            with served(file) as connection:
                await attach_remote(target.machine, connection.fileno(), fresh)
                connection.shutdown(socket.SHUT_RDWR)
            with pytest.raises(HostError, match="index of it cannot be read"):
                await start_stream(target.machine)
            assert await read_disk(target, 0x5A, "1700M") == failed, "before there is a stream"
            with served(file) as connection:
                await reattach_remote(target.machine, connection.fileno())
                await start_stream(target.machine, speed_bytes_s=1)
                connection.shutdown(socket.SHUT_RDWR)
            assert await read_disk(target, 0x5A, "1700M") == failed, "of a part of the disk that nobody has looked into"
            with served(file) as connection:
                await reattach_remote(target.machine, connection.fileno())
            assert await read_disk(target, 0x5A, "1700M") == ""
            await start_stream(target.machine, speed_bytes_s=1)
            assert await read_disk(target, 0x5A, "1700M") == ""

    asyncio.run(scenario())


def test_a_guest_that_is_told_to_go_on_again_and_again_on_a_full_disk_loses_nothing(busy: BusyGuest, tmp_path: Path) -> None:
    async def scenario(folder: Path) -> None:
        async with busy.running(folder / "a") as guest:
            hog = folder / "hog"
            with contextlib.suppress(OSError), hog.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
            for _ in range(FAILED_TRIES):
                async with asyncio.timeout(30):
                    while await guest.machine.status() != "io-error":  # noqa: ASYNC110 all there is
                        await asyncio.sleep(0.05)
                await guest.machine.resume()
            hog.unlink()
            async with asyncio.timeout(30):
                while await guest.machine.status() == "io-error":
                    await guest.machine.resume()
                    await asyncio.sleep(0.5)
            await assert_guest_is_well(guest, rig.alive(guest.folder))

    with tmpfs(tmp_path / "full", 8 * MIB) as folder:
        asyncio.run(scenario(folder))


def test_the_move_of_a_machine_with_host_fsync_keeps_it(boot: BootFiles, tmp_path: Path) -> None:
    async def scenario() -> None:
        folder = tmp_path / "a"
        folder.mkdir()
        await create_overlay(folder / "overlay.qcow2", rig.DISK_BYTES)
        with rig.ram() as ram_fd:
            disk = msgspec.structs.replace(rig.disk(folder), host_fsync=True)
            async with rig.running(rig.options(boot, folder, ram_fd, disk=disk)) as machine:
                nodes = await nodes_by_name(machine.qmp)
                assert nodes["overlay"]["cache"]["no-flush"] is False
                assert nodes["overlay"]["cache"]["direct"] is False
                assert machine.host_fsync
                await machine.detach()
                again = await Machine.reattach(folder)
                assert again.host_fsync
                await again.kill()

    asyncio.run(scenario())
