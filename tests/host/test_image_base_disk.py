"""Images become disks: with the real skopeo, umoci and mke2fs, mounted by the real kernel."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from architect.errors import ArchitectError, CapacityError, InvalidImageError
from architect.images import unpack
from architect.images.base_disk import PreparedImage, prepare_image
from architect.images.base_store import BaseStore
from architect.images.oci_layout import Descriptor, Layout
from architect.model.sizes import GIB
from architect.testing.sample_images import busybox_image
from architect.testing.sample_layout import ImageFile, ImageSettings, directory, link, tag_manifest, text, write_blob, write_image

pytestmark = pytest.mark.host

FILES = {
    "/etc/passwd": text("root:x:0:0::/root:/bin/sh\nu:x:1000:1001::/home/u:/bin/sh\n"),
    "/etc/group": text("g:x:1001:\nextra:x:55:u\n"),
    "/bin/run": text("#!/bin/sh\n", 0o4755),
    "/data": directory(0o700),
    "/data/big": ImageFile(bytes(range(256)) * 4096, 0o600, 1000, 1001),
    "/link": link("data/big"),
}
DOCKER_TYPES = (
    ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"),
    ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"),
    ("application/vnd.oci.image.layer.v1.tar+gzip", "application/vnd.docker.image.rootfs.diff.tar.gzip"),
)
SETTINGS = ImageSettings(("/bin/run",), ("a",), ("FOO=bar",), "u", "/srv/x", "SIGUSR1")


def prepare(reference: str, store: BaseStore, args: tuple[str, ...] = (), env: tuple[str, ...] = ()) -> PreparedImage:
    return asyncio.run(prepare_image(reference, store, args, env, lambda line: None))


@contextlib.contextmanager
def mounted(disk: Path, at: Path, options: str) -> Iterator[Path]:
    at.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", options, disk, at], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", at], check=True)


def run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def leftovers(store: BaseStore) -> list[str]:
    return [path.name for path in (store.root / "temporary").iterdir() if path.name != "lock"]


def can_resize() -> bool:
    """Whether this process has CAP_SYS_RESOURCE (24), which EXT4_IOC_RESIZE_FS asks for."""
    effective = re.search(r"CapEff:\s*([0-9a-f]+)", Path("/proc/self/status").read_text())
    return effective is not None and bool(int(effective[1], 16) >> 24 & 1)


@pytest.fixture
def image(tmp_path: Path) -> str:
    return write_image(tmp_path / "layout", "x", FILES, SETTINGS)


@pytest.fixture
def store(tmp_path: Path) -> BaseStore:
    return BaseStore(tmp_path / "store")


def disk_of(store: BaseStore, prepared: PreparedImage) -> Path:
    path = store.get(prepared.base.digest)
    assert path is not None
    return path


def test_the_disk_holds_the_image_and_the_mount_points(image: str, store: BaseStore, tmp_path: Path) -> None:
    prepared = prepare(image, store, ("b", "c"), ("FOO=baz",))
    process = prepared.process
    assert (process.args, process.cwd, process.stop_signal) == (("/bin/run", "b", "c"), "/srv/x", "SIGUSR1")
    assert (process.uid, process.gid, process.groups) == (1000, 1001, (55,))
    assert "FOO=baz" in process.env and "HOME=/home/u" in process.env and process.env[0].startswith("PATH=/usr/local/sbin:")
    disk = disk_of(store, prepared)
    assert disk.stat().st_size == prepared.base.size_bytes
    run("e2fsck", "-fn", disk)
    with mounted(disk, tmp_path / "mount", "loop,ro,noload") as root:
        assert (root / "data" / "big").read_bytes() == FILES["/data/big"].data
        found = (root / "data" / "big").stat()
        assert (found.st_mode & 0o7777, found.st_uid, found.st_gid) == (0o600, 1000, 1001)
        assert (root / "bin" / "run").stat().st_mode & 0o7777 == 0o4755
        assert os.readlink(root / "link") == "data/big"
        assert (root / "tmp").stat().st_mode & 0o7777 == 0o1777
        assert all((root / name).is_dir() for name in ("proc", "sys", "dev", "run", "srv/x"))
    assert leftovers(store) == []


@pytest.mark.skipif(not can_resize(), reason="growing a mounted file system needs CAP_SYS_RESOURCE")
def test_the_disk_grows_online_to_a_quarter_tebibyte_and_stays_sparse(image: str, store: BaseStore, tmp_path: Path) -> None:
    grown = tmp_path / "grown.raw"
    shutil.copyfile(disk_of(store, prepare(image, store)), grown)
    with grown.open("r+b") as file:
        file.truncate(256 * GIB)
    with mounted(grown, tmp_path / "mount", "loop,noinit_itable") as root:
        device = run("findmnt", "-no", "SOURCE", root).strip()
        run("resize2fs", device)
        space = os.statvfs(root)
        assert space.f_blocks * space.f_frsize > 250 * GIB and space.f_files > 2048 * 8000
        (root / "new").write_bytes(b"x" * 100000)
    assert grown.stat().st_blocks * 512 < GIB // 4
    run("e2fsck", "-fn", grown)


def test_the_same_image_becomes_the_same_bytes_anywhere(image: str, store: BaseStore, tmp_path: Path) -> None:
    first = prepare(image, store)
    time.sleep(1.1)  # so that the second disk is made in another second: change times are whole seconds
    other = BaseStore(tmp_path / "other")
    assert prepare(image, other).base == first.base


def test_a_second_run_does_nothing_but_look(image: str, store: BaseStore, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare(image, store)
    monkeypatch.setenv("PATH", "/nowhere")
    assert prepare(image, store).base == first.base
    assert prepare(image, store, ("other",)).process.args == ("/bin/run", "other")


def test_a_base_that_was_pruned_is_made_again(image: str, store: BaseStore) -> None:
    first = prepare(image, store)
    store.prune(())
    again = prepare(image, store)
    assert again.base == first.base and store.get(again.base.digest)


def test_a_damaged_record_is_made_again(image: str, store: BaseStore) -> None:
    first = prepare(image, store)
    for record in (store.root / "records").iterdir():
        record.write_bytes(b"{")
    assert prepare(image, store).base == first.base


def test_many_at_once_build_it_once(image: str, store: BaseStore) -> None:
    lines: list[str] = []

    async def together() -> list[PreparedImage]:
        return await asyncio.gather(*(prepare_image(image, BaseStore(store.root), (), (), lines.append) for _ in range(8)))

    prepared = asyncio.run(together())
    assert len({one.base for one in prepared}) == 1
    assert len([line for line in lines if "unpacking" in line]) == 1


@pytest.mark.parametrize("kind", ["gzip", "archive", "zstd", "docker"])
def test_other_packagings_of_the_image_become_the_same_disk(image: str, store: BaseStore, tmp_path: Path, kind: str) -> None:
    expected = prepare(image, store).base
    packed = tmp_path / "packed"
    match kind:
        case "gzip":
            reference = write_image(packed, "x", FILES, SETTINGS, compressed=True)
        case "archive":
            run("skopeo", "copy", "--insecure-policy", image, f"docker-archive:{packed}:me/app:1")
            reference = f"docker-archive:{packed}:me/app:1"
        case "zstd":
            run("skopeo", "copy", "--insecure-policy", "--dest-compress-format", "zstd", image, f"oci:{packed}:x")
            assert layer_of(packed).read_bytes()[:4] == b"\x28\xb5\x2f\xfd"
            reference = f"oci:{packed}:x"
        case _:
            reference = write_image(packed, "x", FILES, SETTINGS, compressed=True)
            rewrite_manifest(packed, *DOCKER_TYPES)
    assert prepare(reference, store).base == expected


def rewrite_manifest(layout: Path, *changes: tuple[str, str]) -> None:
    """Replace words in the manifest of the layout's image `x`, and in its descriptor."""
    descriptor = msgspec.json.decode((layout / "index.json").read_bytes())["manifests"][0]
    manifest = (layout / "blobs" / "sha256" / descriptor["digest"].removeprefix("sha256:")).read_text()
    media_type = descriptor["mediaType"]
    for old, new in changes:
        manifest = manifest.replace(old, new)
        media_type = media_type.replace(old, new)
    tag_manifest(layout, "x", write_blob(layout, media_type, manifest.encode()))


@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        (ImageSettings(), "no entrypoint and no cmd"),
        (ImageSettings(("/x",), user="nobody9"), "its user does not resolve: .*nobody9"),
        (ImageSettings(("/x",), architecture="arm64"), "wrong architecture: it is for linux/arm64"),
        (ImageSettings(("/x",), stop_signal="SIGNOPE"), "stop signal"),
    ],
)
def test_an_image_that_cannot_run_says_why(store: BaseStore, tmp_path: Path, settings: ImageSettings, cause: str) -> None:
    reference = write_image(tmp_path / "layout", "x", FILES, settings)
    with pytest.raises(InvalidImageError, match=cause):
        prepare(reference, store)
    assert leftovers(store) == []


def layer_of(layout: Path) -> Path:
    """The layout's only layer: its largest blob."""
    return max((layout / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize("damage", ["flip", "cut", "missing"])
def test_a_damaged_layer_is_found(image: str, store: BaseStore, tmp_path: Path, damage: str) -> None:
    layer = layer_of(tmp_path / "layout")
    content = bytearray(layer.read_bytes())
    content[len(content) // 2] ^= 1
    match damage:
        case "flip":
            layer.write_bytes(content)
        case "cut":
            layer.write_bytes(content[:5000])
        case _:
            layer.unlink()
    with pytest.raises(InvalidImageError):
        prepare(image, store)
    assert leftovers(store) == [] and store.used_bytes() == 0


def test_an_unsupported_layer_is_named(image: str, store: BaseStore, tmp_path: Path) -> None:
    rewrite_manifest(tmp_path / "layout", ("layer.v1.tar", "layer.v1.tar+encrypted"))
    with pytest.raises(InvalidImageError, match=r"unsupported layer type .*tar\+encrypted"):
        prepare(image, store)


@pytest.mark.parametrize("size_kib", [64, 1000, 2500, 4000])
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, size_kib: int) -> None:
    reference = busybox_image(tmp_path / "layout")
    small = tmp_path / "small"
    small.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "none", small)
    try:
        store = BaseStore(small / "store")
        with pytest.raises(CapacityError, match="no room on the disk"):
            prepare(reference, store)
        assert leftovers(store) == [] and store.used_bytes() == 0
    finally:
        run("umount", small)


def test_a_cancelled_build_leaves_nothing(tmp_path: Path, store: BaseStore) -> None:
    reference = busybox_image(tmp_path / "layout")

    async def cancel_at(step: int) -> None:
        seen: list[str] = []
        task = asyncio.create_task(prepare_image(reference, store, (), (), seen.append))
        while len(seen) < step:  # noqa: ASYNC110 progress is a plain callback
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    for step in (1, 2):
        asyncio.run(cancel_at(step))
        assert leftovers(store) == [] and store.used_bytes() == 0


def test_a_cancelled_build_leaves_nothing_of_a_thread_that_still_writes(
    tmp_path: Path, store: BaseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, select, writing = busybox_image(tmp_path / "layout"), unpack._select, threading.Event()

    def slow_select(directory: Path, descriptor: Descriptor, selected: Path, thing: str) -> Layout:
        writing.set()
        for _ in range(50):
            selected.parent.mkdir(parents=True, exist_ok=True)
            time.sleep(0.01)
        return select(directory, descriptor, selected, thing)

    async def cancel() -> None:
        task = asyncio.create_task(prepare_image(reference, store, (), (), lambda _: None))
        await asyncio.to_thread(writing.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    monkeypatch.setattr(unpack, "_select", slow_select)
    asyncio.run(cancel())
    assert leftovers(store) == [] and store.used_bytes() == 0


def test_a_killed_build_leaves_what_the_next_start_removes(tmp_path: Path, store: BaseStore) -> None:
    reference = busybox_image(tmp_path / "layout")
    script = (
        "import asyncio, os, pathlib, sys\n"
        "from architect.images import BaseStore, prepare_image\n"
        "def progress(line):\n    'making' in line and os.kill(os.getpid(), 9)\n"
        "asyncio.run(prepare_image(sys.argv[1], BaseStore(pathlib.Path(sys.argv[2])), (), (), progress))\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, reference, str(store.root)], cwd=Path(__file__).parents[2])
    assert killed.returncode == -9 and len(leftovers(store)) == 1
    again = BaseStore(store.root)
    assert leftovers(again) == [] and again.used_bytes() == 0
    assert again.get(prepare(reference, again).base.digest)


def test_special_files_hard_links_and_attributes_survive(tmp_path: Path, store: BaseStore) -> None:
    run("umoci", "init", "--layout", tmp_path / "layout")
    run("umoci", "new", "--image", f"{tmp_path}/layout:x")
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "one").write_bytes(b"x" * 100)
    os.link(tree / "one", tree / "two")
    os.mkfifo(tree / "pipe")
    os.setxattr(tree / "one", "user.note", b"kept")
    with (tree / "sparse").open("wb") as file:
        file.truncate(64 << 20)
        file.write(b"x")
    run("umoci", "insert", "--image", f"{tmp_path}/layout:x", tree, "/tree")
    run("umoci", "config", "--image", f"{tmp_path}/layout:x", "--config.cmd", "/x")
    disk = disk_of(store, prepare(f"oci:{tmp_path}/layout:x", store))
    with mounted(disk, tmp_path / "mount", "loop,ro,noload") as root:
        one, two = (root / "tree" / "one").stat(), (root / "tree" / "two").stat()
        assert (one.st_ino, one.st_nlink) == (two.st_ino, 2)
        assert (root / "tree" / "pipe").is_fifo() and (root / "tree" / "sparse").stat().st_size == 64 << 20
        assert os.getxattr(root / "tree" / "one", "user.note") == b"kept"
    run("e2fsck", "-fn", disk)


def test_a_hostile_layer_writes_nothing_outside(tmp_path: Path, store: BaseStore) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    files = {"/a": link(str(outside)), "/a/evil": text("x"), "/../../../../../..{outside}/evil2": text("x")}
    with contextlib.suppress(ArchitectError):
        prepare(write_image(tmp_path / "layout", "x", files, SETTINGS), store)
    assert list(outside.iterdir()) == []
