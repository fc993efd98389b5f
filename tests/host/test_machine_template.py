"""Templates with the real guest: captured once, started many times, for any disk and network."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec
import pytest

from architect.drafter.guest_channel import GuestChannel, LogRecord
from architect.drafter.initramfs import build_initramfs
from architect.drafter.kernel import KERNEL_ARGUMENTS
from architect.drafter.machine_options import BootFiles
from architect.drafter.overlay import create_overlay
from architect.drafter.qemu_facts import check_machine, read_qemu_version
from architect.drafter.template import Template, TemplateOptions, ensure_template, start_from_template, template_key
from architect.errors import HostError, IncompatibleError, NotFoundError
from tests.host import machine_rig as rig

pytestmark = pytest.mark.host


async def no_log(record: LogRecord) -> None:
    """The guests of these tests have nothing to say."""


@pytest.fixture(scope="module")
def options() -> TemplateOptions:
    rig.skip_unless_able()
    kernel = rig.guest_kernel()
    initramfs = asyncio.run(build_initramfs(kernel, rig.INIT, rig.CACHE))
    spec = msgspec.structs.replace(rig.SPEC, kernel_sha256=kernel.sha256, initramfs_sha256=initramfs.sha256)
    return TemplateOptions(spec, BootFiles(kernel.vmlinux, initramfs.path, KERNEL_ARGUMENTS))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("templates")


@pytest.fixture(scope="module")
def template(options: TemplateOptions, cache: Path) -> Template:
    async def two_at_once() -> tuple[Template, Template]:
        first, second = await asyncio.gather(ensure_template(options, cache), ensure_template(options, cache))
        return first, second

    first, second = asyncio.run(two_at_once())
    assert first == second
    assert [path.name for path in cache.iterdir() if not path.name.startswith(".lock")] == [f"template-{first.key}"]
    return first


def test_a_template_is_small_and_leaves_no_process(template: Template, cache: Path) -> None:
    folder = Path(template.folder)
    assert sorted(path.name for path in folder.iterdir()) == ["ram", "state", "template.json"]
    assert template.filled_bytes < template.memory_bytes * 3 / 4
    assert (folder / "ram").stat().st_blocks * 512 < template.filled_bytes * 1.1
    running = [link for link in Path("/proc").glob("[0-9]*/environ") if _mentions(link, str(cache))]
    assert running == []


def _mentions(path: Path, text: str) -> bool:
    try:
        return text.encode() in path.read_bytes()
    except OSError:
        return False


def test_machines_of_any_disk_and_mtu_start_from_one_template(template: Template, options: TemplateOptions, tmp_path: Path) -> None:
    async def start(name: str, mtu: int, size_bytes: int) -> None:
        folder = tmp_path / name
        folder.mkdir()
        await create_overlay(folder / "overlay.qcow2", size_bytes)
        spec = msgspec.structs.replace(options.spec, mtu=mtu)
        with rig.ram() as ram_fd:
            machine = await start_from_template(
                template, rig.options(options.boot, folder, ram_fd, spec=spec, disk=rig.disk(folder), shim=rig.SHIM)
            )
            try:
                assert await machine.status() == "paused"
                await machine.resume()
                async with GuestChannel(machine.channel_path, name, no_log) as channel:
                    ready = await channel.wait_ready(30)
                    assert ready.state == 0
                    await channel.ping()
                assert await machine.status() == "running"
                await machine.pause()
                again = await machine.save_device_state()  # and it can be captured itself
                assert len(again) > 1000
            finally:
                await machine.kill()

    async def scenario() -> None:
        await start("a", 1320, 64 << 20)
        await start("b", 1400, 2 << 30)

    asyncio.run(scenario())


def test_the_key_ignores_the_mtu_and_nothing_else(options: TemplateOptions) -> None:
    def key(**changes: object) -> str:
        return template_key(msgspec.structs.replace(options, spec=msgspec.structs.replace(options.spec, **changes)), "7.2.22")

    assert key(mtu=9000) == key()
    changes: list[dict[str, object]] = [
        {"cpus": 2}, {"memory_bytes": 1 << 30}, {"kernel_sha256": "x"}, {"initramfs_sha256": "x"}, {"machine": "x"},
        {"cpu_model": "x"}, {"machine_layout": 99}, {"accelerator": "kvm"},
    ]  # fmt: skip
    assert len({key(**change) for change in changes} | {key()}) == len(changes) + 1
    assert template_key(options, "10.0.2") != template_key(options, "7.2.22")


def test_a_template_that_was_removed_or_does_not_fit_is_refused(
    template: Template, options: TemplateOptions, tmp_path: Path
) -> None:
    async def scenario() -> None:
        with rig.ram() as ram_fd:
            machine_options = rig.options(options.boot, tmp_path / "a", ram_fd, spec=options.spec)
            with pytest.raises(NotFoundError):
                await start_from_template(msgspec.structs.replace(template, folder=str(tmp_path / "gone")), machine_options)
            with pytest.raises(HostError):
                await start_from_template(msgspec.structs.replace(template, memory_bytes=1), machine_options)

    asyncio.run(scenario())


def test_a_damaged_template_is_made_again(template: Template, options: TemplateOptions, cache: Path) -> None:
    os.truncate(Path(template.folder, "state"), 5)
    again = asyncio.run(ensure_template(options, cache))
    assert (again.key, again.folder) == (template.key, template.folder)
    assert Path(again.folder, "state").stat().st_size == again.state_bytes


def test_what_this_qemu_can_build_is_found_by_building_it(options: TemplateOptions) -> None:
    async def scenario() -> None:
        version = await check_machine(options.spec, options.boot)
        assert version == await read_qemu_version()
        with pytest.raises(IncompatibleError):
            await check_machine(msgspec.structs.replace(options.spec, cpu_model="Nehalem-v2,+avx512f"), options.boot)
        with pytest.raises(HostError):
            await read_qemu_version("/nowhere/qemu")
        with pytest.raises(HostError):
            await read_qemu_version("/bin/true")

    asyncio.run(scenario())
