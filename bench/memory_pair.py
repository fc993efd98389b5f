"""Memory pair: two memory processes of ours with a RAM holder each, and moves of what the source's memory holds to the target."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from architect.agent.guest_files import ARTIFACTS
from architect.errors import HostError
from architect.runtime.certificates import make_ca, make_certificate
from architect.runtime.tls import san_name
from architect.silo.memory_client import MemoryOptions, MemoryProcess, memory_server
from architect.silo.memory_messages import SourceOptions
from architect.silo.memory_role import MemoryRole

ADDRESS = "127.0.0.1"
STREAMS = 2
NAMES = {"source": "agent:bench-source", "target": "agent:bench-target"}


class HolderError(HostError):
    """A RAM holder ended."""


class MemoryEnd:
    """One memory process and its holder."""

    def __init__(self, memory: MemoryProcess, holder: asyncio.subprocess.Process) -> None:
        self.memory = memory
        self._holder = holder

    async def ask(self, line: str) -> None:
        """Tell the holder, wait for its answer. Raises: HolderError: it is gone."""
        assert self._holder.stdin is not None
        self._holder.stdin.write(line.encode())
        await _answer(self._holder)

    def cpu_s(self) -> float:
        """CPU time that the memory process has used."""
        return process_cpu_s(self.memory.pid)

    async def end(self) -> None:
        """End both. Idempotent."""
        with contextlib.suppress(ProcessLookupError):
            self._holder.kill()
        await self._holder.wait()
        await self.memory.shutdown()


class MemoryPair:
    """A source and a target, again and again."""

    def __init__(self, source: MemoryEnd, target: MemoryEnd) -> None:
        self._source = source
        self._target = target

    async def fill(self, run: int, stride: int) -> None:
        """Give the source `run` random pages of every `stride`."""
        await self._source.ask(f"fill {run} {stride}\n")

    async def move(self) -> tuple[int, float, float]:
        """Move it into fresh memory, verified by its root at the end; bytes, seconds and CPU seconds of the copying itself."""
        session = secrets.token_hex(16)
        endpoint = await self._target.memory.open_target(session, ADDRESS)
        await self._source.memory.open_source(SourceOptions(session, ADDRESS, endpoint.port, san_name(NAMES["target"]), STREAMS))
        cpu_s = self._source.cpu_s() + self._target.cpu_s()
        stats = await self._source.memory.bulk()
        cpu_s = self._source.cpu_s() + self._target.cpu_s() - cpu_s
        cut = await self._source.memory.cut(postcopy=False)
        await self._target.memory.apply_cut(cut.root, postcopy=False)
        await self._source.memory.end_source()
        await self._target.memory.abort_target()
        return stats.pages * 4096, stats.duration_s, cpu_s


@contextlib.asynccontextmanager
async def memory_pair(folder: Path, memory_bytes: int) -> AsyncIterator[MemoryPair]:
    """Two of them in this network namespace, until the block ends.

    :param folder: for their files; on a tmpfs.

    Raises:
        ArchitectError: a process did not start.
    """
    make_ca(folder / "ca")
    server = memory_server("memory processes of the benchmark")
    try:
        async with contextlib.AsyncExitStack() as stack:
            ends = []
            for name, role in (("source", MemoryRole.FRESH), ("target", MemoryRole.INCOMING)):
                make_certificate(folder / "ca", folder / f"tls-{name}", NAMES[name])
                options = MemoryOptions(folder / name, folder / f"tls-{name}", memory_bytes, 0.0)
                memory = await MemoryProcess.spawn(options, server)
                holder = await _hold(memory.memfd(), memory_bytes)
                ends.append(MemoryEnd(memory, holder))
                stack.push_async_callback(ends[-1].end)
                await memory.attach(holder.pid, role)
            yield MemoryPair(*ends)
    finally:
        server.close()


async def _hold(descriptor: int, size_bytes: int) -> asyncio.subprocess.Process:
    device = os.open("/dev/userfaultfd", os.O_RDWR)
    environment = {**os.environ, "LD_PRELOAD": str(ARTIFACTS / "uffd_shim.so"), "ARCHITECT_UFFD_DEVICE": str(device)}
    try:
        holder = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.ram_holder", str(descriptor), str(size_bytes), env=environment,
            pass_fds=[descriptor, device], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
    finally:
        os.close(device)
        os.close(descriptor)
    await _answer(holder)
    return holder


async def _answer(holder: asyncio.subprocess.Process) -> None:
    assert holder.stdout is not None
    if not await holder.stdout.readline():
        raise HolderError("RAM holder", "it has ended", "run the benchmark again")


def process_cpu_s(pid: int) -> float:
    """CPU time that a process has used, its children excluded."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
