"""What this host's QEMU is and can build, found out by running it."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import tempfile
from pathlib import Path

from architect.drafter.machine import Machine
from architect.drafter.machine_options import VM_UID, BootFiles, MachineOptions
from architect.errors import HostError, IncompatibleError
from architect.model.vm_spec import MachineSpec

QEMU_MIN = (7, 2)
_TIMEOUT_S = 10.0
_VERSION = re.compile(r"version (\d+)\.(\d+)\.(\d+)")


async def read_qemu_version(binary: str = "qemu-system-x86_64") -> str:
    """`7.2.22`.

    Raises:
        HostError: it is not installed or does not run.
        IncompatibleError: it is older than QEMU_MIN.
    """
    thing = f"program {binary}"
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            process = await asyncio.create_subprocess_exec(
                binary, "-version", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            try:
                said, _ = await process.communicate()
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
    except (OSError, TimeoutError) as error:
        raise HostError(thing, str(error) or f"no answer in {_TIMEOUT_S} s", "install qemu-system-x86") from error
    match = _VERSION.search(said.decode(errors="replace"))
    if match is None:
        raise HostError(thing, f"says no version: {said[:100]!r}", "install qemu-system-x86")
    if (int(match[1]), int(match[2])) < QEMU_MIN:
        raise IncompatibleError(thing, f"version {match[1]}.{match[2]}", "install QEMU 7.2 or newer")
    return ".".join(match.groups())


async def check_machine(spec: MachineSpec, boot: BootFiles, *, uid: int = VM_UID, binary: str = "qemu-system-x86_64") -> str:
    """See that this QEMU builds exactly that hardware, by building it halted and ending it. Returns QEMU's version.

    Raises:
        IncompatibleError: it cannot (CPU model, machine type); carries QEMU's words.
        HostError: it cannot be started at all.
    """
    ram = os.memfd_create("check", os.MFD_CLOEXEC)
    try:
        os.ftruncate(ram, spec.memory_bytes)
        with tempfile.TemporaryDirectory(prefix="architect-check-") as folder:
            options = MachineOptions(
                name="check", run_dir=Path(folder), spec=spec, boot=boot, ram_fd=ram, mac="52:54:00:00:00:00", paused=True, uid=uid,
                binary=binary,
            )  # fmt: skip
            machine = await Machine.start(options)
            try:
                return machine.qemu_version
            finally:
                await asyncio.shield(machine.quit())
    finally:
        os.close(ram)
