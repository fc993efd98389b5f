"""Guest files: the kernel and initramfs that guests boot from, made once per machine.

`architect up` makes them before the hosts start, because a host may have no way to a package archive; agents find them in the
cache.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

import architect
from architect.drafter.initramfs import build_initramfs
from architect.drafter.kernel import KERNEL_ARGUMENTS, fetch_guest_kernel
from architect.drafter.machine_options import BootFiles
from architect.errors import HostError

ARTIFACTS = Path(architect.__file__).parent / "artifacts"


class GuestFiles(msgspec.Struct, frozen=True):
    """What guests boot from, and the hashes that specs name it by."""

    boot: BootFiles
    kernel_sha256: str
    initramfs_sha256: str


async def prepare_guest_files(cache_dir: Path) -> GuestFiles:
    """The guest files, from the cache or made now. Idempotent; several processes may call it at once.

    Raises:
        HostError: the kernel cannot be fetched, or the package was not built.
    """
    if not (ARTIFACTS / "init").exists():
        raise HostError("guest init", f"{ARTIFACTS / 'init'} does not exist", "build the package: pip install -e .")
    cache_dir.mkdir(parents=True, exist_ok=True)
    kernel = await fetch_guest_kernel(cache_dir / "kernel")
    initramfs = await build_initramfs(kernel, ARTIFACTS / "init", cache_dir / "initramfs")
    return GuestFiles(BootFiles(kernel.vmlinux, initramfs.path, KERNEL_ARGUMENTS), kernel.sha256, initramfs.sha256)
