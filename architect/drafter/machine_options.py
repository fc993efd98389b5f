"""What a machine is started from, and the record of it that outlives the agent."""

from __future__ import annotations

from pathlib import Path

import msgspec

from architect.drafter.qemu_process import QemuIdentity
from architect.errors import NotFoundError
from architect.model.vm_spec import MachineSpec
from architect.runtime.whole_file import write_whole

VM_UID = 64055
_RECORD = "machine.json"


class BootFiles(msgspec.Struct, frozen=True):
    """The guest's kernel, initramfs (both readable by everybody) and kernel arguments."""

    kernel: Path
    initramfs: Path
    arguments: str


class DiskPaths(msgspec.Struct, frozen=True):
    """The VM's disk: a qcow2 overlay of its own over a shared read-only raw base (None: over nothing)."""

    overlay: Path
    base: Path | None = None
    host_fsync: bool = False


class MachineOptions(msgspec.Struct, frozen=True):
    """How to start a machine.

    :param name: the VM's id; shown in its process name.
    :param label: what errors call it: `QEMU of vm web on host aws-1`; "" is its name.
    :param run_dir: a folder of this machine alone, on this host; sockets, logs and the record live there.
    :param ram_fd: a memfd of `spec.memory_bytes`, the guest's memory; the caller keeps its own descriptor.
    :param tap_fd: an open tap (IFF_VNET_HDR); the caller may close it afterwards. None: a NIC without a network.
    :param incoming: wait for device state (`load_device_state`) instead of booting.
    :param paused: boot, but do not run before `resume`.
    :param vm_generation_id: a UUID; the same after a move, a new one for a clone or a restore.
    :param shim: the userfaultfd shim; None runs without dirty tracking (`uffd` tells the memory process).
    """

    name: str
    run_dir: Path
    spec: MachineSpec
    boot: BootFiles
    ram_fd: int
    mac: str
    disk: DiskPaths | None = None
    tap_fd: int | None = None
    incoming: bool = False
    paused: bool = False
    vm_generation_id: str = "00000000-0000-0000-0000-000000000001"
    uid: int = VM_UID
    shim: Path | None = None
    binary: str = "qemu-system-x86_64"
    start_timeout_s: float = 15.0
    label: str = ""

    @property
    def called(self) -> str:
        """What errors call it."""
        return self.label or self.name


class MachineRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an agent that comes back needs to know of a machine that another one started."""

    name: str
    process: QemuIdentity
    spec: MachineSpec
    has_uffd: bool
    host_fsync: bool
    label: str = ""

    @property
    def called(self) -> str:
        """What errors call it."""
        return self.label or self.name


_MACHINE_RECORD_DECODER = msgspec.json.Decoder(MachineRecord)


def write_record(run_dir: Path, record: MachineRecord) -> None:
    """Write the record. It is not flushed: a crash of the machine ends what it describes.

    Raises:
        OSError: it cannot be written; the one before is still there.
    """
    write_whole(run_dir / _RECORD, msgspec.json.encode(record))


def read_record(run_dir: Path) -> MachineRecord:
    """The record of the machine that was started in `run_dir`.

    Raises:
        NotFoundError: there is none, or it cannot be read.
    """
    try:
        return _MACHINE_RECORD_DECODER.decode((run_dir / _RECORD).read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise NotFoundError(f"machine in {run_dir}", f"no record: {error}", "start it again") from error


def forget_record(run_dir: Path) -> None:
    """Remove the record and the sockets of a machine that has ended; its logs stay. Idempotent."""
    for name in (_RECORD, "qmp.sock", "channel.sock"):
        (run_dir / name).unlink(missing_ok=True)
