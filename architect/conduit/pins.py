"""Pins: the names under which a node's BPF maps outlive the process that made them, `/sys/fs/bpf/architect/FABRIC/NODE/MAP`.

bpffs is one for the whole machine while network namespaces differ, so each folder's `node` map says which namespace it belongs
to. Pins of a namespace that is gone (a host that was deleted) are stale: nothing is attached any more, and the next start of any
node of the fabric removes them. Used by the two datapaths.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
from pathlib import Path

from architect.conduit.bpf_map import BpfMap
from architect.conduit.layout import LAYOUT_VERSION, NodeConfig
from architect.conduit.libbpf import BpfError, library
from architect.errors import ConflictError, HostError, IncompatibleError
from architect.runtime.namespaces import NAMES, current_namespace

BPFFS = Path("/sys/fs/bpf")
_BPFFS_MAGIC = 0xCAFE4A11
_libc = ctypes.CDLL(None, use_errno=True)


def pin_folder(fabric: str, node: str) -> Path:
    """Where a node's maps are pinned. bpffs reserves names with dots; '_' is in none of our names."""
    return fabric_folder(fabric) / node.replace(".", "_")


def fabric_folder(fabric: str) -> Path:
    """Where all pins of a fabric are."""
    return _bpffs() / "architect" / fabric.replace(".", "_")


def mount_bpffs() -> None:
    """Mount bpffs where it is not. Idempotent.

    Raises:
        HostError: not root, or a private mount namespace without it (`ip netns exec` makes one), in which pins would not last.
    """
    if _is_bpffs(_bpffs()):
        return
    ours, first = _mount_namespace("self"), _mount_namespace("1")
    if first and ours != first:
        raise HostError(
            str(BPFFS),
            "no bpffs in this mount namespace",
            "mount it on the machine, or enter with `nsenter --net`, not `ip netns exec`",
        )
    try:
        folder = os.open(BPFFS, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise HostError(str(BPFFS), str(error.strerror), "mount sysfs, on a kernel with BPF") from error
    try:
        # Nodes start together: two mounts would lie on each other, and hide the pins in the lower one.
        fcntl.flock(folder, fcntl.LOCK_EX)
        if not _is_bpffs(BPFFS) and _libc.mount(b"bpf", bytes(BPFFS), b"bpf", 0, None) != 0:
            cause = os.strerror(ctypes.get_errno())
            raise HostError(str(BPFFS), f"cannot be mounted ({cause})", "run as root on a kernel with BPF")
    finally:
        os.close(folder)


def prepare_pins(fabric: str, node: str) -> Path:
    """The node's folder, made if need be and with nothing in it that belongs to another namespace; stale folders removed.

    Raises:
        HostError: bpffs cannot be used.
        ConflictError: a node of that name lives in another network namespace.
        IncompatibleError: living pins of another layout version are there.
    """
    mount_bpffs()
    remove_stale_pins(fabric)
    folder = pin_folder(fabric, node)
    config = _node_config(folder)
    if config is not None and config.netns != current_namespace().inode:
        if config.netns in _living_namespaces():
            raise ConflictError(
                f"node {node} of fabric {fabric}",
                "it exists in another network namespace",
                "give the other one another name, or stop it",
            )
        remove_pins(folder)
    elif config is not None and config.layout_version not in (0, LAYOUT_VERSION):
        raise IncompatibleError(
            f"datapath of {node}",
            f"it was made by another version (layout {config.layout_version}, ours is {LAYOUT_VERSION})",
            "move its VMs away, then run `architect down` there",
        )
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def remove_stale_pins(fabric: str) -> list[str]:
    """Remove the pins of the fabric's nodes whose namespace is gone; their names. Idempotent."""
    alive = _living_namespaces()
    removed = []
    for folder in _folders(fabric):
        config = _node_config(folder)
        if config is not None and config.netns and config.netns not in alive:  # 0: it is being made right now
            remove_pins(folder)
            removed.append(folder.name)
    return removed


def remove_fabric_pins(fabric: str) -> None:
    """Remove all pins of a fabric. What is attached stays attached, and works on maps that nobody can find any more. Idempotent."""
    for folder in _folders(fabric):
        remove_pins(folder)
    with contextlib.suppress(OSError):
        fabric_folder(fabric).rmdir()
        fabric_folder(fabric).parent.rmdir()


def remove_pins(folder: Path) -> None:
    """Remove one node's pins. Idempotent."""
    with contextlib.suppress(FileNotFoundError):
        for pin in folder.iterdir():
            pin.unlink(missing_ok=True)
        folder.rmdir()


def _folders(fabric: str) -> list[Path]:
    with contextlib.suppress(FileNotFoundError):
        return [path for path in fabric_folder(fabric).iterdir() if path.is_dir()]
    return []


def _node_config(folder: Path) -> NodeConfig | None:
    if not (folder / "node").exists():
        return None
    descriptor = library().bpf_obj_get(bytes(folder / "node"))
    if descriptor < 0:
        return None
    node: BpfMap[ctypes.c_uint32, NodeConfig] = BpfMap(descriptor, "node", ctypes.c_uint32, NodeConfig)
    try:
        return node.get(ctypes.c_uint32(0))
    except BpfError:
        return None
    finally:
        node.close()


def _living_namespaces() -> set[int]:
    """Inodes of the network namespaces that a name or a process holds."""
    inodes = set()
    candidates = [*NAMES.glob("*"), *Path("/proc").glob("[0-9]*/ns/net"), *Path("/proc/self/task").glob("*/ns/net")]
    for path in candidates:
        with contextlib.suppress(OSError):
            inodes.add(path.stat().st_ino)
    return inodes


def _bpffs() -> Path:
    """bpffs as this process sees it: its own mount, or that of process 1 where ours is hidden (`ip netns exec` hides /sys)."""
    outside = Path("/proc/1/root") / BPFFS.relative_to("/")
    return outside if not _is_bpffs(BPFFS) and _is_bpffs(outside) else BPFFS


def _is_bpffs(path: Path) -> bool:
    buffer = ctypes.create_string_buffer(256)
    return _libc.statfs(bytes(path), buffer) == 0 and ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF == _BPFFS_MAGIC


def _mount_namespace(process: str) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{process}/ns/mnt")
    return ""
