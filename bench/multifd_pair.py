"""Multifd pair: two QEMUs that never run their guest; what the source's memory holds is moved by QEMU's own multifd.

Fresh ones for every move. No boot, no devices beyond the board's: the bytes are the benchmark's, and some hundred KiB of firmware.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

from qemu.qmp import ConnectError, QMPClient

from architect.drafter.qmp import listening_socket
from architect.errors import HostError
from architect.runtime.certificates import make_ca, make_certificate
from architect.runtime.tls import san_name
from bench.memory_pair import ADDRESS, process_cpu_s
from bench.ram_holder import fill

CHANNELS = 2
START_TIMEOUT_S = 20.0
MOVE_TIMEOUT_S = 120.0
BANDWIDTH_BYTES_S = 100 << 30
TARGET_NAME = "agent:bench-qemu"


class MultifdError(HostError):
    """QEMU's migration failed."""


class MultifdPair:
    """Where the memory lies that is moved.

    :param folder: on a tmpfs.
    """

    def __init__(self, folder: Path, memory_bytes: int) -> None:
        self._folder = folder
        self._memory_bytes = memory_bytes
        self._ram = folder / "ram"
        descriptor = os.open(self._ram, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(descriptor, memory_bytes)
        self._memory = mmap.mmap(descriptor, memory_bytes)
        os.close(descriptor)
        make_ca(folder / "ca")
        for end in ("client", "server"):
            self._make_credentials(end)

    def _make_credentials(self, end: str) -> None:
        folder = self._folder / "tls"
        made = self._folder / f"certificate-{end}"
        make_certificate(self._folder / "ca", made, TARGET_NAME)
        folder.mkdir(exist_ok=True)
        for name, word in (("ca.pem", "ca-cert.pem"), ("cert.pem", f"{end}-cert.pem"), ("cert.key", f"{end}-key.pem")):
            (folder / word).write_bytes((made / name).read_bytes())

    async def fill(self, run: int, stride: int) -> None:
        """As `MemoryPair.fill`."""
        await asyncio.to_thread(fill, self._memory, run, stride)

    async def move(self, *, tls: bool) -> tuple[float, float]:
        """Move it once; seconds (as QEMU says) and CPU seconds of both.

        Raises:
            MultifdError: it failed.
        """
        backing = f"memory-backend-file,id=ram,size={self._memory_bytes},mem-path={self._ram},share=on"
        fresh = f"memory-backend-memfd,id=ram,size={self._memory_bytes},share=on"
        async with self._qemu("target", fresh, "server", "-incoming", "defer") as (target, target_pid):
            async with self._qemu("source", backing, "client") as (source, source_pid):
                for client in (source, target):
                    await _set(client, tls=tls)
                await client_execute(target, "migrate-incoming", {"uri": f"tcp:{ADDRESS}:0"})
                address = (await client_execute(target, "query-migrate"))["socket-address"][0]
                before_s = process_cpu_s(source_pid) + process_cpu_s(target_pid)
                await client_execute(source, "migrate", {"uri": f"tcp:{ADDRESS}:{address['port']}"})
                seconds = await _wait(source)
                return seconds, process_cpu_s(source_pid) + process_cpu_s(target_pid) - before_s

    @contextlib.asynccontextmanager
    async def _qemu(self, name: str, memory: str, end: str, *more: str) -> AsyncIterator[tuple[QMPClient, int]]:
        path = self._folder / f"{name}.qmp"
        with listening_socket(path) as monitor:  # there before QEMU is, so that who connects just waits
            process = await asyncio.create_subprocess_exec(
                "qemu-system-x86_64", "-machine", "pc-q35-7.2,memory-backend=ram", "-object", memory,
                "-nodefaults", "-display", "none", "-m", f"{self._memory_bytes >> 20}M", "-S",
                "-chardev", f"socket,id=monitor,fd={monitor.fileno()},server=on,wait=off", "-mon", "chardev=monitor,mode=control",
                "-object", f"tls-creds-x509,id=tls0,dir={self._folder / 'tls'},endpoint={end},verify-peer=on", *more,
                pass_fds=(monitor.fileno(),),
            )  # fmt: skip
        client = QMPClient(name)
        try:
            try:
                async with asyncio.timeout(START_TIMEOUT_S):
                    await client.connect(str(path))
            except (TimeoutError, ConnectError) as error:
                ended = "does not answer" if process.returncode is None else f"ended with status {process.returncode}"
                raise MultifdError(f"QEMU at the {name}", ended, "see its last words") from error
            yield client, process.pid
        finally:
            with contextlib.suppress(Exception):
                await client.disconnect()
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            path.unlink(missing_ok=True)


async def _set(client: QMPClient, *, tls: bool) -> None:
    await client_execute(client, "migrate-set-capabilities", {"capabilities": [{"capability": "multifd", "state": True}]})
    limits: dict[str, Any] = {"multifd-channels": CHANNELS, "max-bandwidth": BANDWIDTH_BYTES_S}
    if tls:
        limits |= {"tls-creds": "tls0", "tls-hostname": san_name(TARGET_NAME)}
    await client_execute(client, "migrate-set-parameters", limits)


async def _wait(source: QMPClient) -> float:
    async with asyncio.timeout(MOVE_TIMEOUT_S):
        while True:
            state = await client_execute(source, "query-migrate")
            if state["status"] == "completed":
                return float(state["total-time"]) / 1000
            if state["status"] in ("failed", "cancelled"):
                raise MultifdError("multifd", str(state.get("error-desc", state["status"])), "see QEMU's last words")
            await asyncio.sleep(0.01)


async def client_execute(client: QMPClient, command: str, arguments: dict[str, Any] | None = None) -> Any:
    """Run a QMP command."""
    return await client.execute(command, cast("dict[str, object]", arguments))
