"""Whether a VM can move between two hosts: what its spec and device state need, against what the target is. Pure.

Each refusal names the one thing that differs. Room is not checked here: only the target's own reservation can.
"""

from __future__ import annotations

from architect.errors import ArchitectError, IncompatibleError
from architect.model.vm_spec import MACHINE, MACHINE_LAYOUT, VmSpec
from architect.wire.agent_messages import HostFacts

TUNNEL_BYTES = 36
TSC_TOLERANCE = 0.00025
QEMU_OLDEST = (7, 2)


def check_target(spec: VmSpec, source: HostFacts, target: HostFacts) -> None:
    """Nothing, if a VM of this spec can go on at `target`.

    Raises:
        IncompatibleError: it cannot; names what differs.
    """
    machine = spec.machine
    if machine.accelerator != target.accelerator:
        raise _refusal(target, f"runs VMs by {target.accelerator}, the VM needs {machine.accelerator}")
    if machine.machine != MACHINE or machine.machine_layout != MACHINE_LAYOUT:
        raise _refusal(
            target, f"builds {MACHINE} layout {MACHINE_LAYOUT}, the VM is {machine.machine} layout {machine.machine_layout}"
        )
    if _version(target.qemu_version) < QEMU_OLDEST:
        raise _refusal(target, f"has QEMU {target.qemu_version}, older than {'.'.join(map(str, QEMU_OLDEST))}")
    if machine.kernel_sha256 != target.kernel_sha256:
        raise _refusal(target, "has another guest kernel than the VM was started with")
    if machine.initramfs_sha256 != target.initramfs_sha256:
        raise _refusal(target, "has another guest initramfs than the VM was started with")
    if machine.mtu > target.underlay_mtu - TUNNEL_BYTES:
        raise _refusal(target, f"carries packets of {target.underlay_mtu - TUNNEL_BYTES} bytes, the VM sends {machine.mtu}")
    # A TCG guest does not use the TSC as its clock; under KVM time itself would run at another speed after the move.
    if machine.accelerator != "tcg" and abs(source.tsc_khz - target.tsc_khz) > source.tsc_khz * TSC_TOLERANCE:
        raise _refusal(target, f"has a TSC of {target.tsc_khz} kHz, the VM was started at {source.tsc_khz} kHz")


def _refusal(target: HostFacts, cause: str) -> ArchitectError:
    return IncompatibleError(f"host {target.name}", cause, "choose another target host")


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
