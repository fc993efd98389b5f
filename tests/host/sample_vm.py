"""Runs a sample image in a bare VM and checks that it does its work: `python -m tests.host.sample_vm NAME DIR`.

Started by test_image_samples.py in a network namespace of its own, where QEMU's user network maps the guest's ports to 127.0.0.1.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from architect.clouds.local.layout import machine_cache
from architect.drafter.guest_channel import GuestChannel, LogRecord
from architect.drafter.guest_payloads import GuestConfig
from architect.drafter.initramfs import build_initramfs
from architect.drafter.kernel import KERNEL_ARGUMENTS, fetch_guest_kernel
from architect.images import BaseStore, prepare_image
from architect.model.sizes import GIB
from architect.testing import sample_images
from demo.datagram_client import DatagramClient
from demo.stream_client import OutsideServer, ServiceStatus, StreamClient, read_status
from tests.host.guest_machine import CACHE_DIR, INIT

BOOT_TIMEOUT_S = 120.0
OUTSIDE_PORT = 17000
# QEMU's user network: the guest's place in it, and the host's name and MAC there.
CONFIG = GuestConfig("sample", "10.0.2.15", "02:11:22:33:44:66", 1320, (), "10.0.2.2", "52:55:0a:00:02:02")
PORTS = {22: 10022, 6379: 16379, 7000: 7000, 7001: 7001, 7002: 7002}


class Output:
    """What the workload has written."""

    def __init__(self) -> None:
        self.text = ""

    async def take(self, record: LogRecord) -> None:
        """A piece more."""
        self.text += record.data.decode(errors="replace")

    async def wait(self, wanted: str, timeout_s: float = 60.0) -> None:
        """Until `wanted` has been written."""
        async with asyncio.timeout(timeout_s):
            while wanted not in self.text:  # noqa: ASYNC110 a callback fills it
                await asyncio.sleep(0.05)


@asynccontextmanager
async def running(
    reference: str, folder: Path, args: tuple[str, ...] = (), env: tuple[str, ...] = (), disk_bytes: int = 8 * GIB
) -> AsyncIterator[Output]:
    """The image as a VM whose workload has been started."""
    store = BaseStore(folder / "store")
    prepared = await prepare_image(reference, store, args, env, lambda line: print(line, file=sys.stderr))
    base, disk = store.get(prepared.base.digest), folder / "disk.raw"
    assert base is not None
    shutil.copyfile(base, disk)
    os.truncate(disk, disk_bytes)
    kernel = await fetch_guest_kernel(machine_cache() / "kernel")
    initramfs = await build_initramfs(kernel, INIT, CACHE_DIR)
    process = await asyncio.create_subprocess_exec(*_command(kernel.vmlinux, initramfs.path, folder))
    output = Output()
    try:
        async with GuestChannel(folder / "channel", "sample", output.take) as channel:
            await channel.wait_ready(BOOT_TIMEOUT_S)
            await channel.configure(CONFIG)
            await channel.start(prepared.process)
            yield output
    except BaseException:
        print(output.text, (folder / "console").read_text(errors="replace")[-2000:], file=sys.stderr)
        raise
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _command(vmlinux: Path, initramfs: Path, folder: Path) -> list[str]:
    kinds = {7001: "udp"}
    forwards = ",".join(f"hostfwd={kinds.get(guest, 'tcp')}:127.0.0.1:{host}-10.0.2.15:{guest}" for guest, host in PORTS.items())
    return [
        "qemu-system-x86_64",
        *("-M", "pc-q35-7.2,sata=off,smbus=off,usb=off,vmport=off,graphics=off", "-cpu", "Nehalem-v2,-spec-ctrl,enforce"),
        *("-accel", "tcg,thread=multi", "-m", "256", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-kernel", str(vmlinux), "-initrd", str(initramfs), "-append", KERNEL_ARGUMENTS, "-serial", f"file:{folder}/console"),
        *("-chardev", f"socket,id=channel,path={folder}/channel,server=on,wait=off"),
        *("-device", "virtio-serial-pci,max_ports=2,disable-legacy=on"),
        *("-device", "virtserialport,nr=1,chardev=channel,name=architect"),
        *(
            "-blockdev",
            f"driver=file,node-name=disk,filename={folder}/disk.raw,discard=unmap",
            "-device",
            "virtio-blk-pci,drive=disk",
        ),
        *("-netdev", f"user,id=net,{forwards}", "-device", f"virtio-net-pci,netdev=net,mac={CONFIG.mac},romfile="),
    ]


async def check_busybox(folder: Path) -> None:
    """The disk grows to 256 GiB while it is mounted, and takes data."""
    script = "df -k / | tail -1; df -i / | tail -1; dd if=/dev/urandom of=/x bs=1M count=32 2>&1; sync; sha256sum /x; echo ready"
    reference = sample_images.busybox_image(folder / "layout")
    async with running(reference, folder, ("-c", script), disk_bytes=256 * GIB) as output:
        await output.wait("ready")
        blocks, inodes = (int(line.split()[1]) for line in output.text.splitlines()[:2])
        assert blocks > 250 << 20 and inodes > 2048 * 8000, output.text
    assert (folder / "disk.raw").stat().st_blocks * 512 < 200 << 20


async def check_verifier(folder: Path) -> None:
    """Both verifiers run and find nothing."""
    reference = sample_images.verifier_image(folder / "layout")
    words = ("both", "--size-mib 64 --seconds 5", "--size-mib 16 --seconds 600")
    async with running(reference, folder, words) as output:
        await output.wait("memory-verify: seconds=5")
        await output.wait("disk-verify: seconds=3")
        assert "FAILED" not in output.text and "direct=1" in output.text, output.text


async def check_redis(folder: Path) -> None:
    """redis serves, and its file is on the disk."""
    reference = sample_images.redis_image(folder / "layout")
    async with running(reference, folder) as output:
        await output.wait("Ready to accept connections")
        words = ("redis-cli", "-p", str(PORTS[6379]))
        assert (await asyncio.to_thread(subprocess.check_output, [*words, "set", "k", "v"])).strip() == b"OK"
        assert (await asyncio.to_thread(subprocess.check_output, [*words, "get", "k"])).strip() == b"v"


async def check_ssh(folder: Path) -> None:
    """A real client logs in and runs a command."""
    key = folder / "key"
    await asyncio.to_thread(subprocess.check_call, ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key])
    reference = sample_images.ssh_image(folder / "layout", key.with_suffix(".pub").read_text())
    async with running(reference, folder) as output:
        await output.wait("Server listening")
        options = ("-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={folder}/known", "-o", "IdentitiesOnly=yes")
        command = ["ssh", "-p", str(PORTS[22]), "-i", str(key), *options, "root@127.0.0.1", "iperf3 --version && id -u"]
        assert (await asyncio.to_thread(subprocess.check_output, command, timeout=60)).strip().endswith(b"0")


async def check_demo(folder: Path) -> None:
    """Fuzzer and service work under TCG with the CPU model of our VMs: streams in and out, datagrams, status."""
    reference = sample_images.demo_image(folder / "layout")
    outside = OutsideServer()
    await outside.start("127.0.0.1", OUTSIDE_PORT)
    async with running(reference, folder, env=(f"OUTSIDE=10.0.2.2:{OUTSIDE_PORT}",)) as output:
        await output.wait("fuzzer runs as process")
        await asyncio.sleep(10)
        first = await read_status("127.0.0.1")
        stop = asyncio.Event()
        clients = [StreamClient(f"{i}", "127.0.0.1", 1000 + i, 32768) for i in range(4)]
        datagrams = DatagramClient("127.0.0.1", rate_per_s=100)
        async with asyncio.TaskGroup() as tasks:
            streams = [tasks.create_task(client.run(stop)) for client in clients]
            answers = tasks.create_task(datagrams.run(stop))
            await asyncio.sleep(10)
            stop.set()
        last = await read_status("127.0.0.1")
        _check_demo(first, last)
        assert all(task.result().bytes_confirmed > 200_000 < task.result().bytes_verified for task in streams)
        assert answers.result().lost == 0, answers.result()
        print(msgspec.json.encode([first, last, answers.result(), *(task.result() for task in streams)]).decode(), file=sys.stderr)
    assert len(outside.streams) == 1 and outside.streams[0].report().bytes_verified > 100_000
    await outside.stop()


def _check_demo(first: ServiceStatus, last: ServiceStatus) -> None:
    assert last.executions > first.executions > 0, (first, last)
    assert (last.fuzzer_pid, last.fuzzer_restarts) == (first.fuzzer_pid, 0)
    assert (last.streams_total, last.streams_failed) == (4, 0)
    assert (last.outside_state, last.outside_connects) == ("open", 1)


CHECKS: dict[str, Callable[[Path], Awaitable[None]]] = {
    "busybox": check_busybox,
    "verifier": check_verifier,
    "redis": check_redis,
    "ssh": check_ssh,
    "demo": check_demo,
}


async def main(name: str, folder: Path) -> None:
    """Run one check."""
    await CHECKS[name](folder)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
