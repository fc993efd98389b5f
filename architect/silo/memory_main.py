"""`architect memory`: the memory process of one VM. Started by the agent, in a session of its own; outlives it.

It makes the VM's RAM file, or, started again in the same run directory while QEMU still runs, takes it from there. It serves the
agent on `memory.sock` in the run directory. Runs as root in the host's network namespace.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from architect.errors import ArchitectError, ConflictError, UsageError
from architect.runtime.logging import configure_logging
from architect.runtime.rpc import Channel
from architect.silo.kernel_check import check_kernel
from architect.silo.memory_messages import MemoryMessage
from architect.silo.memory_process import MemoryService
from architect.silo.memory_state import PID_NAME, SOCKET_NAME, kept_state
from architect.silo.ram_file import RamFile

SWITCH_INTERVAL_S = 0.0002
NICE = -10


def main(argv: list[str]) -> int:
    """Run until told to end; returns the exit status."""
    parser = argparse.ArgumentParser(prog="architect memory", description="The memory process of one VM; started by the agent.")
    parser.add_argument("--run-dir", type=Path, required=True, help="the VM's run directory, on a tmpfs")
    parser.add_argument("--tls-dir", type=Path, required=True, help="this host's certificate")
    parser.add_argument("--memory-bytes", type=int, required=True, help="size of the VM's RAM")
    parser.add_argument("--track-interval", type=float, default=5.0, help="seconds between scans while nothing moves; 0: none")
    options = parser.parse_args(argv)
    configure_logging()
    try:
        check_kernel()
        with _only_one(options.run_dir):
            asyncio.run(_serve(options.run_dir, options.tls_dir, options.memory_bytes, options.track_interval))
    except ArchitectError as error:
        print(f"architect memory: {error}", file=sys.stderr)
        return error.exit_status
    return 0


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / "memory.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConflictError(f"run directory {folder}", "another memory process uses it", "use that one") from error
        yield


async def _serve(folder: Path, tls_folder: Path, memory_bytes: int, interval_s: float) -> None:
    if memory_bytes <= 0 or memory_bytes % 65536:
        raise UsageError("--memory-bytes", "not a multiple of 64 KiB", "give a whole number of extents")
    kept = kept_state(folder)
    ram = RamFile.of_process(kept.qemu_pid) if kept else RamFile.create(memory_bytes)
    service = MemoryService(ram, folder, tls_folder)
    service.take_over()
    _tune()
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await Channel(reader, writer, MemoryMessage, service.handle, "agent").run()

    path = folder / SOCKET_NAME
    path.unlink(missing_ok=True)
    server = await asyncio.start_unix_server(connected, path)
    path.chmod(0o600)
    (folder / PID_NAME).write_text(f"{os.getpid()}\n")
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, service.ended.set)
    if interval_s > 0:
        tasks.add(asyncio.create_task(service.track(interval_s)))
    async with server:
        await service.ended.wait()
        await asyncio.sleep(0.05)  # the answer to Shutdown
    for task in tasks:
        task.cancel()
    await service.close()


def _tune() -> None:
    """A fault waits for the interpreter's lock at most this long while other threads compute (measured: memory-process.md)."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.collect()
    gc.freeze()
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, NICE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
