"""An agent of a host that is not like the others: `python -m tests.host.strange_agent STAND_IN --config FILE`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from unittest.mock import patch

import msgspec

from architect.agent import host, main
from architect.agent.guest_files import GuestFiles, prepare_guest_files
from architect.drafter.machine import Machine
from architect.drafter.machine_options import MachineOptions

_start = Machine.start


async def old_qemu() -> str:
    """Its QEMU is an old one."""
    return "6.2.0"


async def other_kernel(cache_dir: Path) -> GuestFiles:
    """Guests boot from another kernel there."""
    return msgspec.structs.replace(await prepare_guest_files(cache_dir), kernel_sha256="0" * 64)


async def lesser_cpu(options: MachineOptions) -> Machine:
    """Its QEMU cannot build the VM's CPU model: one that is emulated lacks this feature."""
    spec = msgspec.structs.replace(options.spec, cpu_model=f"{options.spec.cpu_model},+avx512f")
    return await _start(msgspec.structs.replace(options, spec=spec))


STAND_INS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "version": lambda: patch.object(host, "read_qemu_version", old_qemu),
    "kernel": lambda: patch.object(host, "prepare_guest_files", other_kernel),
    "cpu": lambda: patch.object(Machine, "start", lesser_cpu),
}

if __name__ == "__main__":
    with STAND_INS[sys.argv[1]]():
        raise SystemExit(main.main(sys.argv[2:]))
