"""The initramfs: deterministic, its modules in loading order, readable as the kernel reads it."""

from __future__ import annotations

import asyncio
import lzma
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from architect.drafter.cpio import CpioEntry, directory, regular_file, write_cpio
from architect.drafter.initramfs import InitramfsError, build_initramfs
from architect.drafter.kernel import GuestKernel
from architect.drafter.kernel_modules import KernelModuleError, KernelModules

MODULES = {
    "virtio/virtio.ko": "",
    "virtio/virtio_ring.ko": "virtio",
    "virtio/virtio-pci.ko.xz": "virtio-ring,virtio",
    "char/virtio_console.ko": "virtio_ring,virtio",
    "block/virtio_blk.ko": "virtio",
    "net/virtio_net.ko": "net-failover,virtio",
    "net/net_failover.ko": "failover",
    "net/failover.ko": "",
    "sound/never.ko": "virtio",
}


def read_cpio(archive: bytes) -> list[tuple[str, int, bytes]]:
    """Path, mode and content of each entry: an independent reading of the format."""
    entries: list[tuple[str, int, bytes]] = []
    position = 0
    while True:
        assert archive[position : position + 6] == b"070701"
        fields = [int(archive[position + 6 + 8 * i : position + 14 + 8 * i], 16) for i in range(13)]
        name_start = position + 110
        name = archive[name_start : name_start + fields[11] - 1].decode()
        data_start = (name_start + fields[11] + 3) // 4 * 4
        if name == "TRAILER!!!":
            return entries
        entries.append((name, fields[1], archive[data_start : data_start + fields[6]]))
        position = (data_start + fields[6] + 3) // 4 * 4


@pytest.fixture
def kernel(tmp_path: Path) -> GuestKernel:
    folder = tmp_path / "modules" / "6.1"
    for path, depends in MODULES.items():
        data = b"ELF\0license=GPL\0depends=" + depends.encode() + b"\0retpoline=Y\0" + path.encode()
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(lzma.compress(data) if path.endswith("xz") else data)
    (folder / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\nkernel/crypto/crc32c-generic.ko\n")
    return GuestKernel("6.1", tmp_path / "vmlinux", folder, "0" * 64)


def build(kernel: GuestKernel, folder: Path, init: bytes = b"init program") -> tuple[bytes, str]:
    (folder / "init").write_bytes(init)
    built = asyncio.run(build_initramfs(kernel, folder / "init", folder / "cache"))
    return built.path.read_bytes(), built.sha256


def test_modules_are_listed_behind_what_they_depend_on(kernel: GuestKernel, tmp_path: Path) -> None:
    archive, _ = build(kernel, tmp_path)
    files = {name: data for name, _, data in read_cpio(archive)}
    assert files["modules/early"].decode().split() == ["virtio.ko", "virtio_ring.ko", "virtio_pci.ko", "virtio_console.ko"]
    assert files["modules/late"].decode().split() == ["virtio_blk.ko", "failover.ko", "net_failover.ko", "virtio_net.ko"]
    assert files["init"] == b"init program"
    assert files["modules/virtio_pci.ko"].startswith(b"ELF"), "modules are uncompressed"
    assert "modules/never.ko" not in files


def test_the_same_inputs_give_the_same_bytes_and_other_ones_do_not(kernel: GuestKernel, tmp_path: Path) -> None:
    first = build(kernel, tmp_path)
    for path in kernel.modules_dir.rglob("*.ko"):
        path.touch()
    assert build(kernel, tmp_path) == first
    assert build(kernel, tmp_path, b"another init")[1] != first[1]


def test_a_missing_module_is_named(kernel: GuestKernel, tmp_path: Path) -> None:
    (kernel.modules_dir / "net" / "failover.ko").unlink()
    with pytest.raises(KernelModuleError, match="module failover"):
        build(kernel, tmp_path)


def test_a_damaged_module_is_named(kernel: GuestKernel, tmp_path: Path) -> None:
    (kernel.modules_dir / "virtio" / "virtio-pci.ko.xz").write_bytes(b"no xz")
    with pytest.raises(KernelModuleError, match="virtio-pci"):
        build(kernel, tmp_path)


def test_a_missing_init_names_the_command_that_builds_it(kernel: GuestKernel, tmp_path: Path) -> None:
    with pytest.raises(InitramfsError, match="make -C native"):
        asyncio.run(build_initramfs(kernel, tmp_path / "nothing", tmp_path))


def test_modules_that_depend_on_each_other_do_not_hang(kernel: GuestKernel, tmp_path: Path) -> None:
    (kernel.modules_dir / "virtio" / "virtio.ko").write_bytes(b"\0depends=virtio_ring\0")
    assert set(KernelModules(kernel.modules_dir).load_order(("virtio_blk",), ())) == {"virtio", "virtio_ring", "virtio_blk"}


@given(st.dictionaries(st.text("abc/", min_size=1, max_size=8), st.binary(max_size=50), max_size=6))
def test_an_archive_reads_back_sorted(files: dict[str, bytes]) -> None:
    entries: list[CpioEntry] = [regular_file(path, data) for path, data in files.items()]
    read = read_cpio(write_cpio(entries))
    assert [(name, data) for name, _, data in read] == sorted(files.items())


def test_directories_stand_before_their_files() -> None:
    read = read_cpio(write_cpio([regular_file("a/b", b""), directory("a")]))
    assert [name for name, _, _ in read] == ["a", "a/b"]
