"""The initramfs: our init, the modules that it loads, and two lists that say in which order and when.

`/modules/early` is loaded at boot, before a template is captured; `/modules/late` (disk and network card) at CONFIGURE, after a
template has become a VM. Modules are uncompressed: the guest's CPU may be emulated, and `finit_module` then needs no decompressor.
The archive is a function of kernel and init alone, so its hash in a VM's spec means the same on every host.
"""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import msgspec

from architect.drafter.cpio import CpioEntry, character_device, directory, regular_file, write_cpio
from architect.drafter.kernel import GuestKernel
from architect.drafter.kernel_modules import KernelModules
from architect.errors import HostError
from architect.runtime.whole_file import write_whole

# Modules that the kernel has built in are left out; a kernel that has neither is refused.
EARLY_MODULES = ("virtio_pci", "virtio_console", "ext4", "crc32c_generic")
LATE_MODULES = ("virtio_blk", "virtio_net")
OPTIONAL_EARLY_MODULES = ("virtio_rng",)


class InitramfsError(HostError):
    """The initramfs cannot be built here."""

    code = "initramfs"


class Initramfs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A built archive and its hash."""

    path: Path
    sha256: str


async def build_initramfs(kernel: GuestKernel, init: Path, cache_dir: Path) -> Initramfs:
    """The initramfs of `kernel` with `init` as PID 1, in `cache_dir` under its hash.

    Idempotent; the same inputs give the same bytes; two processes may call it at once.

    Raises:
        InitramfsError: init is missing, or the kernel lacks a module that we need.
    """
    return await asyncio.to_thread(_build, kernel, init, cache_dir)


def _build(kernel: GuestKernel, init: Path, cache_dir: Path) -> Initramfs:
    try:
        init_bytes = init.read_bytes()
    except OSError as error:
        raise InitramfsError(str(init), f"cannot be read ({error.strerror})", "run: make -C native") from error
    archive = write_cpio(archive_entries(KernelModules(kernel.modules_dir), init_bytes))
    sha256 = hashlib.sha256(archive).hexdigest()
    path = cache_dir / f"initramfs-{sha256[:24]}.cpio"
    if not path.exists():
        _keep(path, archive)
    return Initramfs(path, sha256)


def archive_entries(modules: KernelModules, init_bytes: bytes) -> list[CpioEntry]:
    """What is in the archive."""
    early = modules.load_order(EARLY_MODULES, OPTIONAL_EARLY_MODULES)
    late = [name for name in modules.load_order(LATE_MODULES, ()) if name not in early]
    entries = [directory(name) for name in ("dev", "proc", "sys", "modules")]
    entries.append(character_device("dev/console", 5, 1))
    entries.append(regular_file("init", init_bytes, 0o755))
    entries.append(regular_file("modules/early", _list(early)))
    entries.append(regular_file("modules/late", _list(late)))
    entries.extend(regular_file(f"modules/{name}.ko", modules.read(name)) for name in (*early, *late))
    return entries


def _list(names: list[str]) -> bytes:
    return "".join(f"{name}.ko\n" for name in names).encode()


def _keep(path: Path, archive: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, archive, mode=0o644, is_flushed=True)  # what has the name is believed from then on
    except OSError as error:
        raise InitramfsError(str(path), f"cannot be written ({error.strerror})", "free space in the cache directory") from error
