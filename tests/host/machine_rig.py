"""Rig for tests of real QEMUs: a guest of busybox that counts, writes and checks its disk, and does what it is told by its channel.

The guest says READY before it loads the drivers of disk and network card, then waits for one line: `count` (ALIVE lines on its
console), `disk` (writes blocks, reads them back, ALIVE or CORRUPT), `exit`, `panic`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest

from architect.clouds.local.layout import machine_cache
from architect.drafter.cpio import character_device, directory, regular_file, write_cpio
from architect.drafter.kernel import GuestKernel, fetch_guest_kernel
from architect.drafter.kernel_modules import KernelModules
from architect.drafter.machine import Machine
from architect.drafter.machine_options import BootFiles, DiskPaths, MachineOptions
from architect.drafter.ram_image import data_extents
from architect.model.sizes import MIB
from architect.model.vm_spec import MachineSpec

ROOT = Path(__file__).parents[2]
CACHE = ROOT / "out" / "test-cache"
SHIM = ROOT / "architect" / "artifacts" / "uffd_shim.so"
INIT = ROOT / "architect" / "artifacts" / "init"
SECOND_QEMU = os.environ.get("ARCHITECT_SECOND_QEMU", "")  # another version, for moves between versions
SPEC = MachineSpec(cpus=1, memory_bytes=128 * MIB, mtu=1320, kernel_sha256="k", initramfs_sha256="i")
MAC = "52:54:00:00:00:01"
DISK_BYTES = 512 * MIB
BOOT_TIMEOUT_S = 90.0
_EARLY = ("virtio_pci", "virtio_console")
_LATE = ("virtio_blk", "virtio_net")
_INIT = r"""#!/bin/busybox sh
B=/bin/busybox
$B mount -t proc proc /proc; $B mount -t sysfs sysfs /sys; $B mount -t devtmpfs dev /dev
for m in EARLY; do $B insmod /m/$m.ko || echo FAIL $m; done
until ls /dev/vport*p1 >/dev/null 2>&1; do $B usleep 10000; done
exec 3<>$($B ls /dev/vport*p1)
echo READY; echo READY >&3
read order <&3
for m in LATE; do $B insmod /m/$m.ko || echo FAIL $m; done
echo ORDER $order MTU $($B cat /sys/class/net/eth0/mtu) SECTORS $($B cat /sys/block/vda/size)
case "$order" in
exit) $B poweroff -f;;
panic) echo c > /proc/sysrq-trigger;;
disk)
  i=0
  while :; do
    i=$((i+1)); at=$((i % 500 * 17))
    { echo "block $i"; $B cat /proc/uptime; } > /head
    { $B cat /head; $B head -c 4096 /dev/urandom; } | $B head -c 4096 > /block
    $B dd if=/block of=/dev/vda bs=4096 seek=$at conv=notrunc,fsync 2>/dev/null
    echo 1 > /proc/sys/vm/drop_caches
    $B dd if=/dev/vda bs=4096 skip=$at count=1 2>/dev/null | $B cmp -s - /block || echo CORRUPT $i
    $B md5sum < /block > /sum.$at
    j=$((i - 7)); old=$((j % 500 * 17))
    if [ $j -gt 0 ]; then
      $B dd if=/dev/vda bs=4096 skip=$old count=1 2>/dev/null | $B md5sum | $B cmp -s - /sum.$old || echo CORRUPT $j
    fi
    echo ALIVE $i
  done;;
esac
i=0; while :; do i=$((i+1)); echo ALIVE $i; $B usleep 20000; done
"""


def skip_unless_able() -> None:
    """Skip the test where this machine cannot run it; names what is missing."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    for program in ("qemu-system-x86_64", "qemu-img", "busybox"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    if not os.path.exists("/dev/userfaultfd"):
        pytest.skip("needs /dev/userfaultfd")
    subprocess.run(["make", "--silent", "-C", str(ROOT / "native"), "all"], check=True)


def guest_kernel() -> GuestKernel:
    """The kernel that fabrics on this machine use: one download for all."""
    return asyncio.run(fetch_guest_kernel(machine_cache() / "kernel"))


def counting_guest() -> BootFiles:
    """Kernel and initramfs of the guest of this rig."""
    kernel = guest_kernel()
    modules = KernelModules(kernel.modules_dir)
    early = modules.load_order(_EARLY, ())
    late = [name for name in modules.load_order(_LATE, ()) if name not in early]
    busybox = shutil.which("busybox")
    assert busybox is not None
    script = _INIT.replace("EARLY", " ".join(early)).replace("LATE", " ".join(late))
    entries = [directory(name) for name in ("bin", "dev", "m", "proc", "sys")]
    entries += [character_device("dev/console", 5, 1), regular_file("init", script.encode(), 0o755)]
    entries += [regular_file("bin/busybox", Path(busybox).read_bytes(), 0o755)]
    entries += [regular_file(f"m/{name}.ko", modules.read(name)) for name in (*early, *late)]
    path = CACHE / "counting.cpio"
    _write_whole(path, write_cpio(entries))
    return BootFiles(kernel.vmlinux, path, "console=ttyS0 quiet panic=-1 tsc=unstable")


def base_disk() -> Path:
    """A base of 32 MiB that is not zero."""
    path = CACHE / "base.raw"
    if not path.exists():
        _write_whole(path, random.Random(7).randbytes(32 * MIB))
    return path


def _write_whole(path: Path, content: bytes) -> None:
    """Another worker of the same run may read it, or write it, too."""
    CACHE.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_bytes(content)
    temporary.chmod(0o644)
    temporary.rename(path)


@contextlib.contextmanager
def ram(size_bytes: int = SPEC.memory_bytes) -> Iterator[int]:
    descriptor = os.memfd_create("architect-ram", os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, size_bytes)
        yield descriptor
    finally:
        os.close(descriptor)


def options(boot: BootFiles, folder: Path, ram_fd: int, **changes: object) -> MachineOptions:
    folder.mkdir(parents=True, exist_ok=True)
    plain = MachineOptions(name=f"test-{folder.name}", run_dir=folder, spec=SPEC, boot=boot, ram_fd=ram_fd, mac=MAC)
    return msgspec.structs.replace(plain, **changes)


def disk(folder: Path) -> DiskPaths:
    return DiskPaths(folder / "overlay.qcow2", base_disk())


@contextlib.asynccontextmanager
async def running(machine_options: MachineOptions) -> AsyncIterator[Machine]:
    machine = await Machine.start(machine_options)
    try:
        yield machine
    finally:
        await machine.kill()


def console(folder: Path) -> str:
    return (folder / "console.log").read_text(errors="replace")


async def wait_console(folder: Path, text: str, timeout_s: float = BOOT_TIMEOUT_S) -> str:
    """Wait until the guest has said `text`; returns all that it said."""
    deadline = time.monotonic() + timeout_s
    while text not in (said := console(folder)):
        assert time.monotonic() < deadline, f"{text!r} did not come; the guest said: {said[-500:]!r}"
        await asyncio.sleep(0.02)
    return said


def alive(folder: Path) -> int:
    """The last ALIVE number."""
    lines = [line for line in console(folder).splitlines() if line.startswith("ALIVE ") and line[6:].isdigit()]
    return int(lines[-1][6:]) if lines else 0


async def wait_alive(folder: Path, number: int, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while alive(folder) < number:
        assert time.monotonic() < deadline, f"the guest stands at {alive(folder)}: {console(folder)[-300:]!r}"
        await asyncio.sleep(0.02)


async def order(machine: Machine, word: str) -> None:
    """Tell a guest that is READY what to do."""
    await wait_console(machine.run_dir, "READY")
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect(str(machine.channel_path))
        channel.sendall(f"{word}\n".encode())
        await wait_console(machine.run_dir, "ORDER", 30)


def copy_ram(source: int, target: int) -> None:
    for start, end in data_extents(source):
        for at in range(start, end, MIB):
            os.pwrite(target, os.pread(source, min(MIB, end - at), at), at)


def connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(path))
    return sock
