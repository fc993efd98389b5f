"""Fetching the guest kernel: from scripted apt and dpkg commands, never from a network."""

from __future__ import annotations

import asyncio
import bz2
import errno
import lzma
import os
import random
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import pytest

from architect.drafter import kernel
from architect.drafter.kernel import (
    KERNEL_ARGUMENTS,
    GuestKernel,
    KernelError,
    fetch_guest_kernel,
    kernel_arguments,
    parse_depends,
)
from architect.drafter.vmlinux import VmlinuxError, extract_vmlinux

ELF = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 2, 62) + random.Random(1).randbytes(100_000)


def bz_image(payload: bytes, version: int = 0x020F) -> bytes:
    """A bzImage of two setup sectors with that payload."""
    image = bytearray(3 * 512 + 128)
    image[0x1F1] = 2
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, version)
    struct.pack_into("<II", image, 0x248, 128, len(payload))
    return bytes(image) + payload + b"what follows the payload"


def gzip(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=31)
    return compressor.compress(data) + compressor.flush()


def by_command(*command: str) -> bytes:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not on this host")
    return subprocess.run(command, input=ELF, stdout=subprocess.PIPE, check=True, timeout=30).stdout


SIZE = struct.pack("<I", len(ELF))


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(gzip(ELF), id="gzip"),
        pytest.param(lzma.compress(ELF) + SIZE, id="xz"),
        pytest.param(lzma.compress(ELF, format=lzma.FORMAT_ALONE) + SIZE, id="lzma"),
        pytest.param(bz2.compress(ELF) + SIZE, id="bzip2"),
        pytest.param(ELF, id="none"),
    ],
)
def test_the_kernel_is_cut_out_of_a_bzimage_however_it_is_compressed(payload: bytes) -> None:
    assert extract_vmlinux(bz_image(payload), "6.1") == ELF


@pytest.mark.parametrize("command", [("zstd", "-q", "-c"), ("lz4", "-q", "-l", "-c")])
def test_the_kernel_is_cut_out_by_a_command_where_python_cannot(command: tuple[str, ...]) -> None:
    assert extract_vmlinux(bz_image(by_command(*command) + SIZE), "6.1") == ELF


@pytest.mark.parametrize(
    "image",
    [
        b"",
        bytes(4000),
        bz_image(gzip(ELF), version=0x0200),
        bz_image(gzip(ELF))[:2000],
        bz_image(gzip(ELF)[:2000]),
        bz_image(gzip(b"not an ELF file" * 100)),
        bz_image(b"\x28\xb5\x2f\xfd" + os.urandom(500)),
        bz_image(b"\xfd7zXZ\x00" + os.urandom(500)),
        bz_image(gzip(ELF.replace(struct.pack("<HH", 2, 62), struct.pack("<HH", 2, 183), 1))),
    ],
)
def test_what_holds_no_kernel_is_refused_by_type(image: bytes) -> None:
    with pytest.raises(VmlinuxError):
        extract_vmlinux(image, "6.1")


def test_the_first_alternatives_of_a_dependency_field_are_named() -> None:
    control = "Package: x\nDepends: linux-image-6.1 (= 6.1.192-2), kmod:any | module-init-tools\nSize: 1\n\nDepends: no\n"
    assert parse_depends(control) == ("linux-image-6.1", "kmod")
    assert parse_depends("N: nothing") == ()


def test_the_accelerator_decides_on_clock_source_and_page_tables() -> None:
    assert kernel_arguments("tcg") == KERNEL_ARGUMENTS
    assert "clocksource=hpet" in KERNEL_ARGUMENTS and "nopti" in KERNEL_ARGUMENTS
    assert "hpet" not in kernel_arguments("kvm") and "nopti" not in kernel_arguments("kvm")


APT_CACHE = """#!/bin/sh
case "$3" in
linux-image-cloud-amd64) echo "Depends: linux-image-6.1-test (= 1)";;
linux-image-6.1-test) echo "Depends: kmod";;
esac
"""
APT_GET = """#!/bin/sh
echo "$@" >> LOG
[ -e FAIL ] && { echo "E: no network" >&2; exit 100; }
touch linux-image-6.1-test_1_amd64.deb
"""
DPKG_DEB = """#!/bin/sh
mkdir -p "$3/boot" "$3/lib/modules/6.1-test/kernel"
cp IMAGE "$3/boot/vmlinuz-6.1-test"
echo module > "$3/lib/modules/6.1-test/kernel/a.ko"
"""


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """apt and dpkg that know one kernel package."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "IMAGE").write_bytes(bz_image(gzip(ELF)))
    for name, text in (("apt-cache", APT_CACHE), ("apt-get", APT_GET), ("dpkg-deb", DPKG_DEB)):
        for word in ("LOG", "FAIL", "IMAGE"):
            text = text.replace(word, str(folder / word))
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_the_concrete_package_is_fetched_once_and_then_taken_from_the_cache(tmp_path: Path, distribution: Path) -> None:
    async def run() -> tuple[GuestKernel, GuestKernel, GuestKernel]:
        cache = tmp_path / "cache"
        first, second = await asyncio.gather(fetch_guest_kernel(cache), fetch_guest_kernel(cache))
        return first, second, await fetch_guest_kernel(cache)

    first, second, third = asyncio.run(run())
    assert first == second == third
    assert (distribution / "LOG").read_text() == "download linux-image-6.1-test\n"
    assert first.version == "6.1-test"
    assert first.vmlinux.read_bytes() == ELF
    assert (first.modules_dir / "kernel" / "a.ko").exists()
    assert [path.name for path in (tmp_path / "cache").glob(".kernel-*")] == []


def test_a_failed_download_names_the_command_to_run_and_leaves_nothing(tmp_path: Path, distribution: Path) -> None:
    (distribution / "FAIL").touch()
    with pytest.raises(KernelError, match=r"no network.*run: apt-get update && apt-get download linux-image-6.1-test"):
        asyncio.run(fetch_guest_kernel(tmp_path / "cache"))
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_distribution_without_a_known_kernel_is_named(tmp_path: Path, distribution: Path) -> None:
    (distribution / "apt-cache").write_text("#!/bin/sh\nexit 100\n")
    with pytest.raises(KernelError, match="apt knows none of"):
        asyncio.run(fetch_guest_kernel(tmp_path / "cache"))


def test_rests_of_an_interrupted_fetch_are_removed(tmp_path: Path, distribution: Path) -> None:
    rest = tmp_path / "cache" / ".kernel-rest"
    rest.mkdir(parents=True)
    asyncio.run(fetch_guest_kernel(tmp_path / "cache"))
    assert not rest.exists()


def test_a_kernel_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, distribution: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[set[str], list[Path]]] = []

    def refuse(folder: Path) -> None:
        made = {path.name for path in (folder / "result").rglob("*") if path.is_file()}
        seen.append((made, list((tmp_path / "cache").glob("kernel-*"))))
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(kernel, "flush_file_system", refuse)
    with pytest.raises(KernelError, match="Input/output error"):
        asyncio.run(fetch_guest_kernel(tmp_path / "cache"))
    assert seen == [({"vmlinux", "kernel.json", "a.ko"}, [])]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]
