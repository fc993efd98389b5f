"""Create a VM: image to base disk, spec, template, machine, first ownership record, workload.

Everything before the workload's start can be repeated or undone; a failure leaves nothing on this host.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

from architect.agent.host import Host
from architect.agent.hosted_vm import HostedVm
from architect.agent.vm_parts import start_fresh
from architect.agent.vm_record import VmPhase
from architect.errors import ArchitectError, ConflictError, IncompatibleError
from architect.images import prepare_image
from architect.migration.ownership_log import create_until_known
from architect.model.ids import HostName
from architect.model.ownership import OwnershipRecord, RecordKind
from architect.model.vm_spec import MachineSpec, VmRequest, VmSpec

FIRST_TERM = 1
FIRST_RECORD_TIMEOUT_S = 20.0
ORDERLY_STEER_TIMEOUT_S = 10.0


async def create_vm(vm: HostedVm, group: asyncio.TaskGroup, progress: Callable[[str], None]) -> None:
    """Create the VM of `vm.record.request` and start its workload; returns when that has been started.

    Raises:
        ArchitectError: what was wrong, by name; nothing of the VM is left on this host.
    """
    host = vm.host
    try:
        spec = await _resolve(host, vm.record.request, progress)
        vm.note(spec=spec)
        progress("starting the machine")
        parts = await start_fresh(host, vm.folder, spec)
        vm.watch(group, parts, fresh=True)
        await write_first_record(host, spec)
        await host.edge.steer(spec.id, spec.request.vni, FIRST_TERM, host.config.address, "")
        host.datapath.set_local(spec.request.vni)
        await parts.machine.resume()
        progress("starting the workload")
        assert vm.guest is not None
        await vm.guest.set_up(_name_servers())
        vm.note(phase=VmPhase.RUNNING, term=FIRST_TERM, workload_started=True)
    except BaseException as error:
        if isinstance(error, ArchitectError) and vm.record.exit_code is not None:
            return  # the workload ended before we had noted that it runs: the watch closes the books
        await asyncio.shield(vm.destroy())
        raise


async def _resolve(host: Host, request: VmRequest, progress: Callable[[str], None]) -> VmSpec:
    if request.mtu > host.config.underlay_mtu - 36:
        cause = f"does not fit into this host's network ({host.config.underlay_mtu} less 36 of tunnel)"
        raise IncompatibleError(f"MTU {request.mtu}", cause, "ask for a smaller one")
    image = await prepare_image(request.image, host.bases, request.args, request.env, progress)
    machine = MachineSpec(
        cpus=request.cpus,
        memory_bytes=request.memory_bytes,
        mtu=request.mtu,
        kernel_sha256=host.facts.kernel_sha256,
        initramfs_sha256=host.facts.initramfs_sha256,
        accelerator=host.facts.accelerator,
    )
    return VmSpec(request, machine, image.base, image.process, mac_address(request.vni))


def mac_address(vni: int) -> str:
    """The VM's MAC address: locally administered, its VNI in the last three bytes."""
    return "02:00:01:" + ":".join(f"{byte:02x}" for byte in vni.to_bytes(3, "big"))


async def write_first_record(host: Host, spec: VmSpec) -> None:
    """Write the VM's first ownership record: asked for until it is known who has it, for a lost answer is no reason to undo a VM.

    Raises:
        ConflictError: another host has it.
        OutcomeUnknownError: the log did not say in time; nobody runs the VM by this record.
    """
    writer = host.entropy.random_bytes(8).hex()
    name = HostName(host.config.name)
    record = OwnershipRecord(vm=spec.id, term=FIRST_TERM, kind=RecordKind.RUN, host=name, writer=writer)
    existing = await create_until_known(host.ownership, record, host.clock, FIRST_RECORD_TIMEOUT_S)
    if existing.host != name:
        raise ConflictError(f"vm {spec.request.name}", f"host {existing.host} owns it already", "see `architect ps`")


def _name_servers() -> tuple[str, ...]:
    """The name servers of this host that a guest can reach, too."""
    servers = []
    with contextlib.suppress(OSError):
        for line in Path("/etc/resolv.conf").read_text().splitlines():
            words = line.split()
            if len(words) == 2 and words[0] == "nameserver" and not words[1].startswith("127.") and ":" not in words[1]:
                servers.append(words[1])
    return tuple(servers[:3])
