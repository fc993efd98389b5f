"""A guest in a bare QEMU, for tests of the guest side alone: TCG, one disk made with mke2fs from busybox, QMP for stop and cont."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from qemu.qmp import ConnectError, QMPClient

from architect.clouds.local.layout import machine_cache
from architect.drafter.guest_channel import GuestChannel, LogRecord, LogStream
from architect.drafter.guest_payloads import GuestConfig
from architect.drafter.initramfs import build_initramfs
from architect.drafter.kernel import KERNEL_ARGUMENTS, fetch_guest_kernel
from architect.model.image import ProcessConfig
from architect.runtime.clock import Clock

REPOSITORY = Path(__file__).parents[2]
CACHE_DIR = REPOSITORY / "out" / "cache"
INIT = REPOSITORY / "architect" / "artifacts" / "init"
BOOT_TIMEOUT_S = 60.0
DISK_BYTES = 256 << 20
DISK_DEVICE = "disk0"
APPLETS = (
    "sh",
    "ls",
    "cat",
    "echo",
    "sleep",
    "id",
    "seq",
    "stty",
    "env",
    "df",
    "tty",
    "head",
    "md5sum",
    "grep",
    "hostname",
    "ip",
    "arp",
    "true",
    "readlink",
)
CONFIG = GuestConfig(host_name="web", address="10.1.0.2", mac="02:11:22:33:44:66", mtu=1320, dns=("10.1.0.1",))


class LogBook:
    """Takes log records and checks that they come one after the other."""

    def __init__(self) -> None:
        self.records: list[LogRecord] = []
        self._came = asyncio.Event()

    async def take(self, record: LogRecord) -> None:
        assert record.seq == (self.records[-1].seq if self.records else 0) + 1, "log records come in order, each once"
        self.records.append(record)
        self._came.set()

    def text(self, stream: LogStream = LogStream.STDOUT) -> str:
        return b"".join(record.data for record in self.records if record.stream is stream).decode()

    async def wait_more(self, timeout_s: float = 20) -> None:
        async with asyncio.timeout(timeout_s):
            self._came.clear()
            await self._came.wait()

    async def wait_text(self, text: str, timeout_s: float = 20, stream: LogStream = LogStream.STDOUT) -> None:
        async with asyncio.timeout(timeout_s):
            while text not in self.text(stream):
                self._came.clear()
                await self._came.wait()


class Relay:
    """Passes bytes between a client and the guest channel until it is cut."""

    def __init__(self, socket: Path, behind: Path) -> None:
        self.socket = socket
        self._behind = behind
        self._writers: list[asyncio.StreamWriter] = []

    async def serve(self, client_reader: asyncio.StreamReader, client_writer: asyncio.StreamWriter) -> None:
        reader, writer = await asyncio.open_unix_connection(str(self._behind))
        self._writers += [client_writer, writer]
        with contextlib.suppress(OSError):
            await asyncio.gather(self._pass(client_reader, writer), self._pass(reader, client_writer))

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()


class GuestMachine:
    """A running QEMU. `channel()` opens the guest channel, behind what the log book has."""

    def __init__(self, folder: Path, process: asyncio.subprocess.Process, boot_started_s: float, disk: Path, log: LogBook) -> None:
        self.socket = folder / "channel"
        self.process = process
        self.log = log
        self.disk = disk
        self.boot_started_s = boot_started_s
        self._folder = folder

    def channel(self, socket: Path | None = None, clock: Clock | None = None) -> GuestChannel:
        position = self.log.records[-1].seq if self.log.records else 0
        return GuestChannel(socket or self.socket, "VM test", self.log.take, position, clock)

    @asynccontextmanager
    async def relay(self) -> AsyncIterator[Relay]:
        """A second socket of the guest channel, whose connections can be cut."""
        relay = Relay(self._folder / "relay", self.socket)
        server = await asyncio.start_unix_server(relay.serve, str(relay.socket))
        try:
            yield relay
        finally:
            server.close()
            relay.cut()

    async def pause(self, duration_s: float) -> tuple[float, float]:
        """stop, wait, cont; returns how long the guest stood still at least, and at most."""
        async with self._qmp() as client:
            asked_s = time.monotonic()
            await client.execute("stop")
            stopped_s = time.monotonic()
            await asyncio.sleep(duration_s)
            resumes_s = time.monotonic()
            await client.execute("cont")
            return resumes_s - stopped_s, time.monotonic() - asked_s

    async def slow_disk(self, iops: int) -> None:
        """Have the disk do so many reads a second from now on; 0: as many as it can."""
        limits = {"iops": iops, **dict.fromkeys(("iops_rd", "iops_wr", "bps", "bps_rd", "bps_wr"), 0)}
        async with self._qmp() as client:
            await client.execute("block_set_io_throttle", {"id": f"/machine/peripheral/{DISK_DEVICE}/virtio-backend", **limits})

    async def save_state(self, path: Path) -> None:
        """Stop, write memory and device state to `path`, and end this QEMU."""
        async with self._qmp() as client:
            await client.execute("stop")
            await client.execute("migrate-set-parameters", {"max-bandwidth": 1 << 34})
            await client.execute("migrate", {"uri": f"exec:cat > {path}"})
            await _wait_status(client, "postmigrate")
            await client.execute("quit")
        await self.process.wait()

    async def resume_state(self) -> None:
        """Go on from the state that QEMU was started with."""
        async with self._qmp() as client:
            await _wait_status(client, "paused")
            await client.execute("cont")

    @asynccontextmanager
    async def _qmp(self) -> AsyncIterator[QMPClient]:
        client = QMPClient("test")
        async with asyncio.timeout(20):
            while not await _has_connected(client, self._folder / "qmp"):  # noqa: ASYNC110  (QEMU sets no event of ours)
                await asyncio.sleep(0.02)
        try:
            yield client
        finally:
            with contextlib.suppress(EOFError):  # of a QEMU that was told to quit, and was faster
                await client.disconnect()


async def _has_connected(client: QMPClient, path: Path) -> bool:
    """QEMU binds the socket's name first, and listens a moment later."""
    try:
        await client.connect(str(path))
    except ConnectError:
        return False
    return True


async def _wait_status(client: QMPClient, status: str) -> None:
    async with asyncio.timeout(60):
        while (await client.execute("query-status"))["status"] != status:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


class Guests:
    """Guests that go on from `state`, in which one was left that had booted and not seen its disk yet; or, without one, boot."""

    def __init__(self, state: Path | None = None) -> None:
        self._state = state

    def run(
        self,
        test: Callable[[GuestMachine, GuestChannel], Awaitable[None]],
        files: dict[str, str] | None = None,
        then: Callable[[GuestMachine], Awaitable[None]] | None = None,
    ) -> None:
        """Configure a guest whose disk also has the executable `files`, and run `test`; `then` runs with the channel closed."""

        async def run() -> None:
            async with self.start(files or {}) as machine:
                async with machine.channel() as channel:
                    await channel.wait_ready(BOOT_TIMEOUT_S)
                    await channel.configure(CONFIG)
                    await test(machine, channel)
                if then is not None:
                    await then(machine)

        asyncio.run(run())

    def start(self, files: dict[str, str]) -> contextlib.AbstractAsyncContextManager[GuestMachine]:
        """A guest with a disk of its own, to be configured."""
        return boot_guest(files, self._state)


async def boot_template(state: Path) -> None:
    """Boot a guest and leave it in `state`, as VMs have a template that they start from."""
    async with boot_guest({}) as machine:
        async with machine.channel() as channel:
            await channel.wait_ready(BOOT_TIMEOUT_S)
        await machine.save_state(state)


def shell(script: str, **more: object) -> ProcessConfig:
    """A workload that is a shell script."""
    return ProcessConfig(args=("sh", "-c", script), env=("PATH=/bin", "COLOUR=blue"), **more)  # type: ignore[arg-type]


@asynccontextmanager
async def boot_guest(
    files: dict[str, str], state: Path | None = None, disk: Path | None = None, log: LogBook | None = None
) -> AsyncIterator[GuestMachine]:
    """A guest that boots, or resumes `state`, with a new disk or with `disk`; killed at the end."""
    kernel = await fetch_guest_kernel(machine_cache() / "kernel")
    initramfs = await build_initramfs(kernel, INIT, CACHE_DIR)
    folder = Path(tempfile.mkdtemp(prefix="architect-guest-"))
    try:
        if disk is None:
            disk = folder / "disk"
            _make_disk(disk, files)
        started_s = time.monotonic()
        process = await asyncio.create_subprocess_exec(*_command(kernel.vmlinux, initramfs.path, folder, disk, state))
        try:
            machine = GuestMachine(folder, process, started_s, disk, log or LogBook())
            if state is not None:
                await machine.resume_state()
            yield machine
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
    finally:
        shutil.rmtree(folder)


def _make_disk(disk: Path, files: dict[str, str]) -> None:
    root = disk.parent / "root"
    (root / "bin").mkdir(parents=True)
    (root / "etc").mkdir()
    (root / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n")
    shutil.copy("/bin/busybox", root / "bin" / "busybox")
    for name in APPLETS:
        (root / "bin" / name).symlink_to("busybox")
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
        (root / path).chmod(0o755)
    subprocess.run(("mke2fs", "-q", "-t", "ext4", "-d", str(root), str(disk), "32M"), check=True, stdout=subprocess.DEVNULL)
    os.truncate(disk, DISK_BYTES)


def _command(vmlinux: Path, initramfs: Path, folder: Path, disk: Path, state: Path | None) -> list[str]:
    return [
        "qemu-system-x86_64",
        *("-M", "pc-q35-7.2,sata=off,smbus=off,usb=off,vmport=off,graphics=off", "-cpu", "Nehalem-v2,-spec-ctrl"),
        *("-accel", "tcg,thread=multi", "-m", "192", "-nodefaults", "-no-user-config", "-display", "none"),
        *("-kernel", str(vmlinux), "-initrd", str(initramfs), "-append", KERNEL_ARGUMENTS, "-no-reboot"),
        *("-serial", f"file:{folder}/console", "-qmp", f"unix:{folder}/qmp,server=on,wait=off"),
        *("-chardev", f"socket,id=channel,path={folder}/channel,server=on,wait=off"),
        *("-device", "virtio-serial-pci,max_ports=2,disable-legacy=on"),
        *("-device", "virtserialport,nr=1,chardev=channel,name=architect"),
        *(
            "-blockdev",
            f"driver=file,node-name=disk,filename={disk}",
            "-device",
            f"virtio-blk-pci,id={DISK_DEVICE},drive=disk,disable-legacy=on",
        ),
        *("-netdev", "hubport,id=net,hubid=0"),
        *("-device", "virtio-net-pci,netdev=net,mac=02:11:22:33:44:55,host_mtu=1320,romfile=,disable-legacy=on"),
        *(() if state is None else ("-incoming", f"exec:cat {state}")),
    ]
