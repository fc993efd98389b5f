"""VmRequest: what the user asked for. VmSpec: everything that a host needs to build the very same machine.

A request is desired state and lives in the control plane. The first host resolves it to a spec (image to base disk, kernel by
hash, CPU model, PCI layout by `machine_layout`), and that spec never changes while the VM exists: a target that cannot build it
exactly refuses by name. Sizes are bytes.
"""

from __future__ import annotations

import msgspec

from architect.model.endpoints import Publish
from architect.model.ids import VmId, Vni
from architect.model.image import BaseDiskRef, ProcessConfig
from architect.model.sizes import GIB, MIB

DEFAULT_MEMORY_BYTES = 256 * MIB
DEFAULT_DISK_BYTES = 8 * GIB
DEFAULT_MTU = 1320
MACHINE = "pc-q35-7.2"
CPU_MODEL = "Nehalem-v2,-spec-ctrl"
MACHINE_LAYOUT = 1


class VmRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `architect run` asks for. `args` replaces the image's cmd, `env` is added to the image's environment."""

    id: VmId
    name: str
    vni: Vni
    image: str
    address: str
    cpus: int = 1
    memory_bytes: int = DEFAULT_MEMORY_BYTES
    disk_bytes: int = DEFAULT_DISK_BYTES
    mtu: int = DEFAULT_MTU
    publish: tuple[Publish, ...] = ()
    env: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    host_fsync: bool = False


class MachineSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The part of a spec that shapes the virtual hardware, and so the device state: equal on both ends of every move.

    A template epoch fits every VM whose machine and base are equal. `machine_layout` numbers our own QEMU command line
    (devices, PCI addresses, queue sizes); it changes when that does.
    """

    cpus: int
    memory_bytes: int
    mtu: int
    kernel_sha256: str
    initramfs_sha256: str
    machine: str = MACHINE
    cpu_model: str = CPU_MODEL
    machine_layout: int = MACHINE_LAYOUT
    accelerator: str = "tcg"


class VmSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A resolved VM. `mac` and `address` are the guest's own and the same on every host."""

    request: VmRequest
    machine: MachineSpec
    base: BaseDiskRef
    process: ProcessConfig
    mac: str

    @property
    def id(self) -> VmId:
        """The VM's id."""
        return self.request.id
