"""Template epochs: a machine captured after boot, from which every VM of the same hardware starts without booting.

The guest says READY before it loads the drivers of disk and network card, so what is captured knows nothing of either: image, disk
size, MAC and MTU may differ. A template is keyed by everything else that shapes memory and device state: hardware, kernel,
initramfs, kernel arguments, the QEMU that captured it, and the versions of our layouts.

In the cache a template is a folder `template-<key>` with `ram` (sparse), `state` and `template.json`; it is made under another name
and renamed, so whoever finds it finds it whole, and a lock keeps two makers apart. What all clones share (the kernel's
random state, the date) the guest's init replaces before anything of the user's runs (DESIGN §3).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import msgspec

from architect.drafter.folder_lock import folder_lock
from architect.drafter.guest_channel import GuestChannel, LogRecord
from architect.drafter.machine import Machine
from architect.drafter.machine_options import VM_UID, BootFiles, MachineOptions
from architect.drafter.qemu_facts import read_qemu_version
from architect.drafter.ram_image import restore_ram, save_ram
from architect.errors import HostError, NotFoundError
from architect.model.vm_spec import MachineSpec

FORMAT = 1
BOOT_TIMEOUT_S = 120.0
LOAD_TIMEOUT_S = 15.0
TEMPLATES_MAX = 8
_MAC = "52:54:00:00:00:00"


class TemplateOptions(msgspec.Struct, frozen=True):
    """What a template is made from. Of `spec`, the MTU does not matter."""

    spec: MachineSpec
    boot: BootFiles
    uid: int = VM_UID
    binary: str = "qemu-system-x86_64"


class Template(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A template in the cache, at `folder`."""

    key: str
    folder: str
    memory_bytes: int
    filled_bytes: int
    state_bytes: int
    qemu_version: str


_TEMPLATE_DECODER = msgspec.json.Decoder(Template)


async def ensure_template(options: TemplateOptions, cache_dir: Path) -> Template:
    """The template for that hardware, from the cache or, for the first time, by booting a guest (seconds).

    Idempotent; two processes may call it at once, one boots. A cancelled call leaves no template and no process.

    Raises:
        HostError: QEMU or the cache failed.
        GuestSilentError: the guest did not come up in BOOT_TIMEOUT_S.
        IncompatibleError: this QEMU cannot build that hardware.
    """
    key = template_key(options, await read_qemu_version(options.binary))
    with contextlib.suppress(NotFoundError):
        return read_template(cache_dir, key)
    await asyncio.to_thread(cache_dir.mkdir, parents=True, exist_ok=True)
    async with folder_lock(cache_dir):
        with contextlib.suppress(NotFoundError):
            return read_template(cache_dir, key)
        for stale in cache_dir.glob(".template-*"):
            shutil.rmtree(stale, ignore_errors=True)
        _make_room(cache_dir)
        work = Path(tempfile.mkdtemp(prefix=".template-", dir=cache_dir))
        try:
            await _capture(options, key, work)
            shutil.rmtree(cache_dir / f"template-{key}", ignore_errors=True)  # a damaged one
            work.rename(cache_dir / f"template-{key}")
        except OSError as error:
            raise HostError(f"template {key}", str(error), f"see that {cache_dir} has space") from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return read_template(cache_dir, key)


async def start_from_template(template: Template, options: MachineOptions) -> Machine:
    """Start a machine in the state in which the template was captured; it is paused, `resume` it. On failure nothing is left.

    `options.ram_fd` is an empty memfd; `options.spec` has the template's hardware (`template_key` equal).

    Raises:
        NotFoundError: the template was removed from the cache meanwhile; ensure it again.
        Others as `Machine.start` and `Machine.load_device_state`.
    """
    if options.spec.memory_bytes != template.memory_bytes:
        raise HostError(f"template {template.key}", "is of another memory size", "ensure the template of this spec")
    try:
        state = Path(template.folder, "state").read_bytes()
        image = os.open(Path(template.folder, "ram"), os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NotFoundError(f"template {template.key}", str(error), "make it again") from error
    # QEMU starts up while memory is filled; it looks at memory only when device state is loaded.
    filling = asyncio.ensure_future(asyncio.to_thread(_fill, image, os.dup(options.ram_fd)))
    try:
        machine = await Machine.start(msgspec.structs.replace(options, incoming=True))
    except BaseException:
        filling.add_done_callback(lambda done: done.cancelled() or done.exception())
        raise
    try:
        await filling
        await machine.load_device_state(state, LOAD_TIMEOUT_S)
    except BaseException as error:
        await asyncio.shield(machine.kill())
        if isinstance(error, OSError):
            raise HostError(f"template {template.key}", str(error), "see the host's free memory") from error
        raise
    return machine


def _fill(image: int, ram: int) -> None:
    """`restore_ram` with descriptors of its own: a thread outlives the cancellation of who waits for it."""
    try:
        restore_ram(image, ram)
    finally:
        os.close(image)
        os.close(ram)


def template_key(options: TemplateOptions, qemu_version: str) -> str:
    """24 hex digits that are equal where a template fits."""
    parts = (FORMAT, msgspec.structs.replace(options.spec, mtu=0), options.boot.arguments, qemu_version)
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:24]


def read_template(cache_dir: Path, key: str) -> Template:
    """The template of that key, marked as used.

    Raises:
        NotFoundError: the cache has none, or it is damaged.
    """
    folder = cache_dir / f"template-{key}"
    try:
        template = _TEMPLATE_DECODER.decode((folder / "template.json").read_bytes())
        if (folder / "state").stat().st_size != template.state_bytes or (folder / "ram").stat().st_size != template.memory_bytes:
            raise OSError(f"{folder} is damaged")
        os.utime(folder)
    except (OSError, msgspec.DecodeError) as error:
        raise NotFoundError(f"template {key}", str(error), "make it") from error
    return msgspec.structs.replace(template, folder=str(folder))


async def _capture(options: TemplateOptions, key: str, work: Path) -> None:
    ram = os.memfd_create("template", os.MFD_CLOEXEC)
    try:
        os.ftruncate(ram, options.spec.memory_bytes)
        run_dir = work / "run"
        run_dir.mkdir()
        machine = await Machine.start(
            MachineOptions(
                name=f"template-{key[:6]}", run_dir=run_dir, spec=options.spec, boot=options.boot, ram_fd=ram, mac=_MAC,
                uid=options.uid, binary=options.binary,
            )
        )  # fmt: skip
        try:
            async with GuestChannel(machine.channel_path, f"template {key}", _ignore) as channel:
                await channel.wait_ready(BOOT_TIMEOUT_S)
            await machine.pause()
            state = await machine.save_device_state()
            with (work / "ram").open("w+b") as image:
                filled_bytes = await asyncio.to_thread(save_ram, ram, image.fileno())
        finally:
            await asyncio.shield(machine.kill())
        (work / "state").write_bytes(state)
        template = Template(key, "", options.spec.memory_bytes, filled_bytes, len(state), machine.qemu_version)
        (work / "template.json").write_bytes(msgspec.json.encode(template))
        shutil.rmtree(run_dir)
        await asyncio.to_thread(_write_through, work)
    finally:
        os.close(ram)


def _write_through(folder: Path) -> None:
    """Bring a template to the disk before it gets its name: after a crash of the host, what has the name is whole."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


async def _ignore(record: LogRecord) -> None:
    """A template's guest has nothing to say."""


def _make_room(cache_dir: Path) -> None:
    """Remove the templates that were not used for longest, so that one more fits. Who has one open keeps it."""
    folders = sorted(cache_dir.glob("template-*"), key=lambda folder: folder.stat().st_mtime)
    for folder in folders[: max(0, len(folders) - TEMPLATES_MAX + 1)]:
        shutil.rmtree(folder, ignore_errors=True)
