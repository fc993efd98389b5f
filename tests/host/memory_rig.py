"""Rig for tests of memory moves: hosts (memory processes in a namespace of their own, TLS certificates) and guests that prove
their pages (`memory_guest.c`)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from architect.runtime.certificates import make_ca, make_certificate
from architect.runtime.process_end import has_ended
from architect.runtime.processes import pidfd_where
from architect.runtime.tls import san_name
from architect.silo.kernel_check import KernelError, check_kernel
from architect.silo.memory_client import MemoryOptions, MemoryProcess, memory_server
from architect.silo.memory_messages import Cut, SourceOptions
from architect.silo.memory_role import MemoryRole

ROOT = Path(__file__).parents[2]
ADDRESS = "127.0.0.1"
RAM_BYTES = 64 << 20
GONE_S = 60.0


def skip_unless_able() -> None:
    """Skip the test where this machine cannot run it; names what is missing."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    try:
        check_kernel()
    except KernelError as error:
        pytest.skip(str(error))


class Guest:
    """A process that maps a RAM file and writes to it; it stands for QEMU with a running guest."""

    def __init__(self, folder: Path, memfd: int, ram_bytes: int) -> None:
        device = os.open("/dev/userfaultfd", os.O_RDWR)
        environment = {"LD_PRELOAD": str(folder / "shim.so"), "ARCHITECT_UFFD_DEVICE": str(device)}
        try:
            self.process = subprocess.Popen(
                [folder / "guest", str(memfd), str(ram_bytes)], env=environment, pass_fds=[memfd, device], text=True, bufsize=1,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
        finally:
            os.close(device)
            os.close(memfd)
        assert self._answer() == "ready"

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def _say(self, line: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self._answer()

    def fill(self, percent: int) -> None:
        assert self._say(f"fill {percent}") == "filled"

    def run(self, rate: int, hot_pages: int) -> None:
        assert self._say(f"run {rate} {hot_pages}") == "running"

    def pause(self) -> None:
        """Stop between two pages; fails if a page was found bad."""
        answer = self._say("pause")
        assert answer.startswith("stopped"), answer
        assert self._answer() == "paused"

    def check(self) -> None:
        answer = self._say("check")
        assert answer == "good", answer

    def mapped_pages(self) -> int:
        """How many pages of the RAM are in its page table."""
        sections = Path(f"/proc/{self.process.pid}/smaps").read_text().split("/memfd:")[1:]
        return sum(int(kib) for section in sections for kib in re.findall(r"^Rss: +(\d+) kB", section, re.MULTILINE)[:1]) // 4

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Host:
    """One host with one VM's memory process and its guest."""

    def __init__(self, rig: Rig, name: str, memory: MemoryProcess, guest: Guest, run_dir: Path) -> None:
        self.rig, self.name, self.memory, self.guest, self.run_dir = rig, name, memory, guest, run_dir

    async def restart_memory(self) -> None:
        """Kill the memory process and start another one in its place."""
        await self.kill_memory()
        self.memory = await MemoryProcess.spawn(self.rig.options(self.name), self.rig.server)

    async def kill_memory(self) -> None:
        os.kill(self.memory.pid, 9)
        await self.memory.close()
        await asyncio.to_thread(wait_gone, self.memory.pid)


def wait_gone(pid: int) -> None:
    """Wait until a process has ended with all its threads: until then it holds its files, and with them its lock."""
    descriptor = pidfd_where(pid, lambda: True)
    if descriptor is None:
        return
    try:
        assert has_ended(descriptor, GONE_S), f"process {pid} does not end"
    finally:
        os.close(descriptor)


class Rig:
    """A namespace, certificates and programs; deletes all of it in `close`."""

    def __init__(self, ram_bytes: int = RAM_BYTES) -> None:
        self.ram_bytes = ram_bytes
        self.folder = Path(tempfile.mkdtemp(prefix="architect-memory-", dir="/dev/shm"))
        self.namespace = self.folder.name
        self.server = memory_server(str(self.folder), ("ip", "netns", "exec", self.namespace))
        self._pids: set[int] = set()
        self._guests: list[Guest] = []
        subprocess.run(["ip", "netns", "add", self.namespace], check=True)
        subprocess.run(["ip", "-n", self.namespace, "link", "set", "lo", "up"], check=True)
        make_ca(self.folder / "ca")
        for host in ("alpha", "beta"):
            make_certificate(self.folder / "ca", self.folder / f"tls-{host}", f"agent:{host}")
        flags = ["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-o"]
        subprocess.run([*flags, self.folder / "guest", ROOT / "tests/host/memory_guest.c"], check=True)
        subprocess.run([*flags, self.folder / "shim.so", "-shared", "-fPIC", ROOT / "native/uffd_shim.c"], check=True)

    def options(self, name: str, *, tls: str = "") -> MemoryOptions:
        return MemoryOptions(self.folder / name, self.folder / f"tls-{tls or name}", self.ram_bytes, 0.0)

    def source_options(
        self, port: int, session: str, streams: int = 2, reconnect_s: float = 20.0, bandwidth_bytes_s: int = 0
    ) -> SourceOptions:
        """Where to send to: a target with the certificate of beta."""
        return SourceOptions(session, ADDRESS, port, san_name("agent:beta"), streams, bandwidth_bytes_s, reconnect_s)

    async def host(self, name: str, role: MemoryRole, *, tls: str = "") -> Host:
        """Start a memory process and a guest on it."""
        memory = await MemoryProcess.spawn(self.options(name, tls=tls), self.server)
        guest = Guest(self.folder, memory.memfd(), self.ram_bytes)
        self._guests.append(guest)
        await memory.attach(guest.process.pid, role)
        return Host(self, name, memory, guest, self.folder / name)

    def close(self) -> None:
        for guest in self._guests:
            guest.kill()
        for path in self.folder.glob("*/memory.pid"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(path.read_text()), 9)
        self.server.close()
        time.sleep(0.05)
        subprocess.run(["ip", "netns", "del", self.namespace], check=True)
        shutil.rmtree(self.folder)


@contextlib.contextmanager
def rig(ram_bytes: int = RAM_BYTES) -> Iterator[Rig]:
    """A rig that is gone afterwards."""
    skip_unless_able()
    made = Rig(ram_bytes)
    try:
        yield made
    finally:
        made.close()


@contextlib.asynccontextmanager
async def pair(made: Rig, streams: int = 2, fill: int = 70) -> AsyncIterator[tuple[Host, Host]]:
    """A source whose guest has filled its memory, and a target that it is connected to."""
    source = await made.host("alpha", MemoryRole.FRESH)
    source.guest.fill(fill)
    target = await made.host("beta", MemoryRole.INCOMING)
    try:
        await connect(source, target, streams)
        yield source, target
    finally:
        await source.memory.close()
        await target.memory.close()


async def connect(source: Host, target: Host, streams: int = 2, session: str = "secret-1") -> None:
    """Open both ends of a move."""
    endpoint = await target.memory.open_target(session, ADDRESS)
    await source.memory.open_source(source.rig.source_options(endpoint.port, session, streams))


async def cut_over(source: Host, target: Host, *, postcopy: bool) -> Cut:
    """Pause the guest, cut, have it applied."""
    await asyncio.to_thread(source.guest.pause)
    cut = await source.memory.cut(postcopy=postcopy)
    await target.memory.apply_cut(cut.root, postcopy=postcopy)
    return cut
