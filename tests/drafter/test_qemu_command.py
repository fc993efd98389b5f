"""The command line is complete, deterministic, and free of whatever pins guest memory."""

from __future__ import annotations

import itertools
import json

import msgspec
import pytest

from architect.drafter.pinning import PinnedMemoryError, check_arguments, check_command
from architect.drafter.qemu_command import DiskFiles, QemuDescriptors, QemuLaunch, qemu_command
from architect.model.vm_spec import MachineSpec

SPEC = MachineSpec(cpus=2, memory_bytes=256 << 20, mtu=1320, kernel_sha256="k", initramfs_sha256="i")
LAUNCH = QemuLaunch("vm-000000000001", "52:54:00:00:00:01", "console=ttyS0", "00000000-0000-0000-0000-000000000001")
DESCRIPTORS = QemuDescriptors(
    ram=10, qmp=11, channel=12, console=13, kernel=14, initramfs=15, disk=DiskFiles(16, 17, 18), tap=19, null_disk_bytes=1
)


def nodes(command: list[str]) -> dict[str, dict[str, object]]:
    found = [json.loads(value) for option, value in itertools.pairwise(command) if option == "-blockdev"]
    return {node["node-name"]: node for node in found}


def value_after(command: list[str], option: str) -> str:
    return command[command.index(option) + 1]


def test_every_disk_node_is_buffered_and_does_not_flush() -> None:
    found = nodes(qemu_command(SPEC, LAUNCH, DESCRIPTORS))
    assert found["overlay-file"]["cache"] == {"direct": False, "no-flush": True}
    assert found["overlay"]["cache"] == {"direct": False, "no-flush": True}
    assert found["overlay-file"]["aio"] == found["base-file"]["aio"] == "threads"


def test_host_fsync_lets_flushes_through_and_nothing_else_changes() -> None:
    plain = qemu_command(SPEC, LAUNCH, DESCRIPTORS)
    with_fsync = qemu_command(SPEC, msgspec.structs.replace(LAUNCH, host_fsync=True), DESCRIPTORS)
    assert nodes(with_fsync)["overlay"]["cache"] == {"direct": False, "no-flush": False}
    assert [a.replace('"no-flush":true', '"no-flush":false') for a in plain] == with_fsync


def test_the_device_stands_on_a_filter_above_the_overlay_above_the_base() -> None:
    command = qemu_command(SPEC, LAUNCH, DESCRIPTORS)
    found = nodes(command)
    assert found["disk"]["driver"] == "throttle"
    assert found["disk"]["file"] == "overlay"
    assert found["overlay"]["backing"] == "base"
    assert found["base"]["read-only"] is True
    assert any("virtio-blk-pci" in argument and "drive=disk" in argument for argument in command)


def test_a_target_waits_for_device_state_without_running() -> None:
    command = qemu_command(SPEC, msgspec.structs.replace(LAUNCH, incoming=True), DESCRIPTORS)
    assert value_after(command, "-incoming") == "defer"
    assert "-S" in command


def test_a_machine_that_boots_runs_at_once() -> None:
    command = qemu_command(SPEC, LAUNCH, DESCRIPTORS)
    assert "-incoming" not in command
    assert "-S" not in command


def test_the_hardware_is_the_same_whatever_the_descriptors_and_the_launch() -> None:
    other = QemuDescriptors(ram=30, qmp=31, channel=32, console=33, kernel=34, initramfs=35)
    here = qemu_command(SPEC, LAUNCH, DESCRIPTORS)
    there = qemu_command(SPEC, msgspec.structs.replace(LAUNCH, incoming=True), other)

    def devices(command: list[str]) -> list[str]:
        values = [value for option, value in itertools.pairwise(command) if option in ("-device", "-machine", "-cpu")]
        return [value.removesuffix(",netdev=tap0") for value in values]

    assert devices(here) == devices(there)


def test_every_pci_device_has_a_fixed_address() -> None:
    command = qemu_command(SPEC, LAUNCH, DESCRIPTORS)
    addresses = [argument for argument in command if "-pci," in argument]
    assert len(addresses) == 3
    assert all(",addr=0x" in argument for argument in addresses)


def test_the_tap_is_never_given_to_vhost() -> None:
    assert value_after(qemu_command(SPEC, LAUNCH, DESCRIPTORS), "-netdev") == "tap,id=tap0,fd=19,vhost=off"


def test_all_sandbox_groups_are_denied() -> None:
    sandbox = value_after(qemu_command(SPEC, LAUNCH, DESCRIPTORS), "-sandbox")
    assert sandbox == "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


def _with_node(**options: object) -> list[str]:
    return [*qemu_command(SPEC, LAUNCH, DESCRIPTORS), "-blockdev", json.dumps({"driver": "file", "node-name": "x", **options})]


@pytest.mark.parametrize(
    "command",
    [
        _with_node(cache={"direct": True}),
        _with_node(cache={"direct": "on"}),
        _with_node(file={"driver": "file", "cache": {"direct": True}}),
        _with_node(aio="native"),
        _with_node(aio="io_uring"),
        _with_node(driver="nvme-io_uring"),
        _with_node(driver="virtio-blk-vhost-vdpa"),
        ["qemu", "-blockdev", "driver=file,node-name=x,filename=y,cache.direct=on"],
        ["qemu", "-drive", "file=x,cache=writeback"],
        ["qemu", "-netdev", "tap,id=n,fd=3,vhost=on"],
        ["qemu", "-netdev", "tap,id=n,fd=3,vhost=off,vhostforce=on"],
        ["qemu", "-netdev", "vhost-user,id=n,chardev=c"],
        ["qemu", "-device", "vfio-pci,host=01:00.0"],
        ["qemu", "-device", "vhost-vsock-pci,guest-cid=3"],
        ["qemu", "-device", "virtio-balloon-pci"],
        ["qemu", "-device", "virtio-mem-pci,memdev=m"],
        ["qemu", "-object", "memory-backend-file,id=x,pmem=on", "-device", "virtio-pmem-pci,memdev=x"],
        ["qemu", "-device", "ivshmem-plain,memdev=m"],
    ],
)
def test_whatever_pins_guest_memory_is_refused(command: list[str]) -> None:
    with pytest.raises(PinnedMemoryError):
        check_command(command)


def test_the_command_line_is_checked_where_it_is_made() -> None:
    smuggled = msgspec.structs.replace(SPEC, machine="pc-q35-7.2,device=vfio-pci")
    with pytest.raises(PinnedMemoryError):
        qemu_command(smuggled, LAUNCH, DESCRIPTORS)


def test_kernel_arguments_are_the_guests_and_are_not_searched() -> None:
    check_command(["qemu", "-append", "vfio_iommu=1 vhost.x=1"])


@pytest.mark.parametrize(
    "arguments",
    [
        {"driver": "file", "node-name": "x", "cache": {"direct": True}},
        {"options": [{"driver": "qcow2", "file": {"driver": "file", "aio": "native"}}]},
        {"driver": "vfio-pci", "id": "x"},
        {"type": "tap", "vhost": True},
        {"qom-type": "memory-backend-rdma"},
    ],
)
def test_run_time_additions_that_pin_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(PinnedMemoryError):
        check_arguments(arguments)


def test_run_time_additions_of_ours_pass() -> None:
    check_arguments({"driver": "file", "node-name": "x", "aio": "threads", "cache": {"direct": False, "no-flush": True}})
    check_arguments({"driver": "raw", "file": {"driver": "nbd", "server": {"type": "unix", "path": "/x"}, "export": "disk"}})
