"""Which accelerator this host can use, decided by running code in it and never because a device opens.

KVM is taken if a loop at CPL 0 runs at the CPU's speed and a SYSCALL arrives (`kvm_probe`); otherwise TCG, with the reason by name.
The answer holds for one boot of the host and is kept in a file under that boot's id.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from enum import StrEnum
from pathlib import Path

import msgspec

from architect.pvm.kvm_probe import DEVICE, KvmProbe
from architect.runtime.boot import boot_id
from architect.runtime.whole_file import write_whole

LOOP_NS_MAX = 50.0
PROBE_TIMEOUT_S = 5.0
_FILE = "accelerator.json"
_VERSION = 1


class AcceleratorKind(StrEnum):
    """QEMU's names."""

    KVM = "kvm"
    TCG = "tcg"


class Accelerator(msgspec.Struct, frozen=True):
    """What VMs on this host run on, and why."""

    kind: AcceleratorKind
    reason: str


class _Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    boot_id: str
    device: bool
    accelerator: Accelerator


_KEPT_DECODER = msgspec.json.Decoder(_Kept)
_PROBE_DECODER = msgspec.json.Decoder(KvmProbe)


async def detect_accelerator(cache_dir: Path, *, device: str = DEVICE) -> Accelerator:
    """The accelerator of this host; runs the probe once a boot (milliseconds) and keeps its answer in `cache_dir`. Never raises."""
    boot, exists = boot_id(), os.path.exists(device)
    path = cache_dir / _FILE
    try:
        kept = _KEPT_DECODER.decode(path.read_bytes())
        if (kept.version, kept.boot_id, kept.device) == (_VERSION, boot, exists):
            return kept.accelerator
    except (OSError, msgspec.DecodeError):
        pass  # nothing was kept, or by another version
    accelerator = judge(await _run_probe() if exists else KvmProbe(error="there is none"), device)
    _keep(path, _Kept(_VERSION, boot, exists, accelerator))
    return accelerator


def judge(probe: KvmProbe, device: str = DEVICE) -> Accelerator:
    """The accelerator that a probe's outcome allows."""
    if probe.error:
        return Accelerator(AcceleratorKind.TCG, f"{device}: {probe.error}")
    if probe.loop_ns > LOOP_NS_MAX:
        return Accelerator(
            AcceleratorKind.TCG, f"{device} emulates kernel code: {probe.loop_ns:.0f} ns a loop, over {LOOP_NS_MAX:.0f}"
        )
    if not probe.syscall_arrives:
        return Accelerator(AcceleratorKind.TCG, f"{device} loses system calls: a SYSCALL from CPL 3 did not arrive at CPL 0")
    return Accelerator(AcceleratorKind.KVM, f"{device} runs kernel code at {probe.loop_ns:.1f} ns a loop")


async def _run_probe() -> KvmProbe:
    # In a process of its own: KVM_RUN on a broken KVM may not return, and then only SIGKILL ends it.
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "from architect.pvm.kvm_probe import main; main()",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    except OSError as error:
        return KvmProbe(error=f"the probe cannot be started: {error}")
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            said, _ = await process.communicate()
        return _PROBE_DECODER.decode(said)
    except TimeoutError:
        return KvmProbe(error=f"a guest of two instructions did not end in {PROBE_TIMEOUT_S:.0f} s")
    except msgspec.DecodeError:
        return KvmProbe(error=f"the probe ended with status {process.returncode}")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _keep(path: Path, kept: _Kept) -> None:
    with contextlib.suppress(OSError):  # it is only a memory; the next one asks again
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, msgspec.json.encode(kept), mode=0o644)
