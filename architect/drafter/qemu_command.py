"""QEMU's command line: a pure function of a machine's spec and of the descriptors that the process inherits.

Every device has a fixed PCI address, every file is an inherited descriptor (disks and console as an fd set, `/dev/fdset/N`), and
nothing is left to QEMU's defaults: the same `MachineSpec` gives the same virtual hardware, and so the same device state, on every
host. `MACHINE_LAYOUT` in the model numbers this layout; change both together.

The disk is a stack of named nodes that `block` works on::

    device ← disk (throttle filter, its name never changes) ← overlay (qcow2, ours to write) ← base (raw, read-only)

The filter has no limits set: it is the fixed point below which `blockdev-reopen` can put another overlay while the device stays.

Guest memory is tracked by write-protecting it, so a device that pins guest pages would lose writes silently; `pinning` refuses
any such command line, and `qemu_command` passes its own result through that check.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import msgspec

from architect.drafter.pinning import check_command
from architect.model.vm_spec import MachineSpec

FDSET_CONSOLE = 1
FDSET_BASE = 2
FDSET_OVERLAY = 3

NODE_DISK = "disk"
NODE_OVERLAY = "overlay"
NODE_BASE = "base"
CHANNEL_PORT = "architect"

PCI_SERIAL = "0x2"
PCI_DISK = "0x3"
PCI_NIC = "0x4"

# TCG keeps translated code in this much memory; QEMU's default is 1 GiB a process, which many small VMs on one host cannot afford.
TRANSLATION_CACHE_MIB = 128
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


class DiskFiles(msgspec.Struct, frozen=True):
    """Descriptors of the disk's files. QEMU reopens nodes read-only and read-write, so the overlay comes in both modes."""

    overlay_read_write: int
    overlay_read_only: int
    base_read_only: int | None = None


class QemuDescriptors(msgspec.Struct, frozen=True):
    """What QEMU inherits, by descriptor number. `qmp` and `channel` are listening unix sockets, `ram` is a memfd.

    Without `disk` the disk is an empty null device of `null_disk_bytes` (templates are made so); without `tap` the NIC has no peer.
    """

    ram: int
    qmp: int
    channel: int
    console: int
    kernel: int
    initramfs: int
    disk: DiskFiles | None = None
    tap: int | None = None
    null_disk_bytes: int = 1 << 30


class QemuLaunch(msgspec.Struct, frozen=True):
    """How this QEMU starts: who it is, its guest's kernel arguments, and whether it waits for device state."""

    name: str
    mac: str
    kernel_arguments: str
    vm_generation_id: str
    incoming: bool = False
    paused: bool = False
    host_fsync: bool = False
    binary: str = "qemu-system-x86_64"


def qemu_command(spec: MachineSpec, launch: QemuLaunch, descriptors: QemuDescriptors) -> list[str]:
    """The argument vector of a VM's QEMU.

    Raises:
        PinnedMemoryError: never for a layout of ours; the check is the guard against a careless change here.
    """
    command = [
        launch.binary,
        *("-name", f"guest={launch.name},process={launch.name[:15]},debug-threads=on"),
        *("-nodefaults", "-no-user-config", "-display", "none"),
        *("-sandbox", SANDBOX),
        *_board(spec, descriptors),
        *_boot(launch, descriptors),
        *_monitor_and_console(descriptors),
        *_channel(descriptors),
        *_disk(launch, descriptors),
        *_nic(spec, launch, descriptors),
        *("-device", f"vmgenid,guid={launch.vm_generation_id},id=generation"),
        *("-global", "migration.send-configuration=off"),
    ]
    if launch.incoming:
        command += ["-incoming", "defer"]
    if launch.incoming or launch.paused:
        command += ["-S"]
    check_command(command)
    return command


def _board(spec: MachineSpec, descriptors: QemuDescriptors) -> list[str]:
    accelerator = "kvm" if spec.accelerator == "kvm" else f"tcg,thread=multi,tb-size={TRANSLATION_CACHE_MIB}"
    ram = (
        f"memory-backend-file,id=ram,size={spec.memory_bytes},share=on,prealloc=off,merge=off,"
        f"mem-path=/proc/self/fd/{descriptors.ram}"
    )
    return [
        *("-machine", f"{spec.machine},memory-backend=ram,sata=off,smbus=off,usb=off,vmport=off,graphics=off"),
        *("-accel", accelerator),
        *("-cpu", f"{spec.cpu_model},enforce"),
        *("-smp", f"cpus={spec.cpus},sockets=1,cores={spec.cpus},threads=1,maxcpus={spec.cpus}"),
        *("-m", f"size={spec.memory_bytes // 1024}k"),
        *("-object", ram),
        # A guest that powers off, restarts or panics ends its QEMU; a restart would lose what the host knows of the guest.
        *("-action", "reboot=shutdown,shutdown=poweroff,panic=shutdown"),
    ]


def _boot(launch: QemuLaunch, descriptors: QemuDescriptors) -> list[str]:
    return [
        *("-kernel", f"/proc/self/fd/{descriptors.kernel}"),
        *("-initrd", f"/proc/self/fd/{descriptors.initramfs}"),
        *("-append", launch.kernel_arguments),
    ]


def _monitor_and_console(descriptors: QemuDescriptors) -> list[str]:
    return [
        *("-chardev", f"socket,id=qmp,fd={descriptors.qmp},server=on,wait=off"),
        *("-mon", "chardev=qmp,mode=control"),
        *("-add-fd", f"set={FDSET_CONSOLE},fd={descriptors.console}"),
        *("-chardev", f"file,id=console,path=/dev/fdset/{FDSET_CONSOLE},append=on"),
        *("-serial", "chardev:console"),
    ]


def _channel(descriptors: QemuDescriptors) -> list[str]:
    return [
        *("-chardev", f"socket,id=channel,fd={descriptors.channel},server=on,wait=off"),
        *("-device", f"virtio-serial-pci,id=serial0,addr={PCI_SERIAL},max_ports=2,disable-legacy=on"),
        *("-device", f"virtserialport,bus=serial0.0,nr=1,chardev=channel,name={CHANNEL_PORT},id=port0"),
    ]


def _disk(launch: QemuLaunch, descriptors: QemuDescriptors) -> list[str]:
    device = (
        f"virtio-blk-pci,id=disk0,drive={NODE_DISK},addr={PCI_DISK},num-queues=1,queue-size=256,disable-legacy=on,"
        "write-cache=on,werror=stop,rerror=stop"
    )
    top = {"driver": "throttle", "node-name": NODE_DISK, "throttle-group": "limits", "file": NODE_OVERLAY}
    arguments = ["-object", "throttle-group,id=limits"]
    if (files := descriptors.disk) is None:
        empty = {"driver": "null-co", "node-name": NODE_OVERLAY, "size": descriptors.null_disk_bytes, "read-zeroes": True}
        return [*arguments, "-blockdev", _json(empty), "-blockdev", _json(top), "-device", device]
    if files.base_read_only is not None:
        arguments += ["-add-fd", f"set={FDSET_BASE},fd={files.base_read_only}"]
        arguments += ["-blockdev", _json(file_node(file_of(NODE_BASE), FDSET_BASE, launch.host_fsync, read_only=True))]
        arguments += ["-blockdev", _json({"driver": "raw", "node-name": NODE_BASE, "read-only": True, "file": file_of(NODE_BASE)})]
    for descriptor in (files.overlay_read_write, files.overlay_read_only):
        arguments += ["-add-fd", f"set={FDSET_OVERLAY},fd={descriptor}"]
    backing = NODE_BASE if files.base_read_only is not None else None
    arguments += ["-blockdev", _json(file_node(file_of(NODE_OVERLAY), FDSET_OVERLAY, launch.host_fsync))]
    arguments += ["-blockdev", _json(overlay_node(NODE_OVERLAY, file_of(NODE_OVERLAY), backing, launch.host_fsync))]
    return [*arguments, "-blockdev", _json(top), "-device", device]


def _nic(spec: MachineSpec, launch: QemuLaunch, descriptors: QemuDescriptors) -> list[str]:
    device = (
        f"virtio-net-pci,id=nic0,mac={launch.mac},addr={PCI_NIC},rx_queue_size=1024,tx_queue_size=256,"
        f"host_mtu={spec.mtu},romfile=,mq=off,disable-legacy=on"
    )
    if descriptors.tap is None:
        return ["-device", device]
    return ["-netdev", f"tap,id=tap0,fd={descriptors.tap},vhost=off", "-device", f"{device},netdev=tap0"]


def file_of(node: str) -> str:
    """How the node is named that has the file, or the connection to it, which that node reads."""
    return f"{node}-file"


def file_node(name: str, fdset: int, host_fsync: bool, *, read_only: bool = False) -> dict[str, object]:
    """A `blockdev-add` of an inherited file: buffered (never O_DIRECT), worker threads, fsync only where asked for."""
    return {
        "driver": "file",
        "node-name": name,
        "filename": f"/dev/fdset/{fdset}",
        "aio": "threads",
        "cache": cache_options(host_fsync),
        "read-only": read_only,
        "discard": "unmap",
    }


def overlay_node(name: str, file: str, backing: str | None, host_fsync: bool) -> dict[str, object]:
    """A `blockdev-add` of a qcow2 overlay over `file`. What its header says of a backing file is never used."""
    return {
        "driver": "qcow2",
        "node-name": name,
        "file": file,
        "backing": backing,
        "cache": cache_options(host_fsync),
        "discard": "unmap",
    }


def cache_options(host_fsync: bool) -> dict[str, bool]:
    """Cache mode of every node of ours: buffered; a guest's fsync ends in the page cache unless `host_fsync`."""
    return {"direct": False, "no-flush": not host_fsync}


def _json(value: Mapping[str, object]) -> str:
    return json.dumps(value, separators=(",", ":"))
