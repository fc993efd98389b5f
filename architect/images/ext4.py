"""A directory tree becomes an ext4 file system in a sparse raw file, the same bytes for the same tree on every host.

The file system is as small as the tree allows; the guest grows it online to its disk. Decisions, each for what happens then:

- group descriptors are reserved for 1 TiB, so that the growth is online and moves nothing (`EXT4_IOC_RESIZE_FS`);
- inode tables are declared zeroed (they are: the file is new and sparse): no `ext4lazyinit` thread that dirties the guest's disk
  for minutes. The guest should mount with `noinit_itable` while it grows, for the same reason: its disk reads as zeros too;
- 8,192 inodes a group: the number is copied to every group that the growth adds, whatever the size of the base;
- a journal of 8 MiB: written round and round, it is traffic of every epoch and every move;
- no discard, no blocks reserved for root.

mke2fs 1.47 copies a tree in the order of its names, dates our own inodes by E2FSPROGS_FAKE_TIME and takes modification times from
the tree; only the change times are this machine's, so debugfs sets them afterwards. With its configuration file ignored and
UUID and hash seed fixed nothing else varies.
"""

from __future__ import annotations

from pathlib import Path

from architect.errors import InvalidImageError
from architect.images.rootfs import BLOCK_BYTES, IMAGE_EPOCH_S, TreeSize
from architect.images.tool import ToolCall, ToolFailedError, map_os_error, run_tool
from architect.model.sizes import MIB, round_up

MAKE_DEADLINE_S = 1800.0
GROWTH_BYTES_MAX = 1 << 40
_UUID = "6f636961-7263-4869-8465-637400000001"
_HASH_SEED = "6f636961-7263-4869-8465-637400000002"
_FEATURES = (
    "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,"
    "dir_nlink,extra_isize,metadata_csum"
)
_JOURNAL_MIB = 8
_INODE_BYTES = 256
_INODES_PER_GROUP = 8192
_GROUP_BYTES = 32768 * BLOCK_BYTES
_SLACK_BYTES = 16 * MIB
_FIRST_INODE = 11
_ATTEMPTS = 3


async def build_ext4(rootfs: Path, tree: TreeSize, disk: Path, thing: str) -> int:
    """Write the file system of `rootfs` to the new file `disk`; returns its size in bytes.

    Raises:
        InvalidImageError: the tree cannot be stored.
        CapacityError: the disk is full.
        HostError: mke2fs is missing, or did not end in time.
    """
    size_bytes = _size(tree)
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            await _make(rootfs, tree, disk, size_bytes, thing)
            break
        except ToolFailedError as error:
            # The size is an estimate: extended attributes and very large directories need more.
            if attempt == _ATTEMPTS or "allocate" not in error.message:
                raise InvalidImageError(thing, f"it cannot be stored: {error.message}", "see what is special in it") from error
            size_bytes *= 2
    await _set_change_times(tree, disk, thing)
    return size_bytes


def _size(tree: TreeSize) -> int:
    content = tree.content_bytes + tree.content_bytes // 10 + tree.inodes * _INODE_BYTES
    return round_up(content + _JOURNAL_MIB * MIB + _SLACK_BYTES, MIB)


async def _make(rootfs: Path, tree: TreeSize, disk: Path, size_bytes: int, thing: str) -> None:
    groups = -(-size_bytes // _GROUP_BYTES)
    inodes = max(groups * _INODES_PER_GROUP, round_up(tree.inodes + tree.inodes // 8 + 64, 1024))
    extended = (
        f"hash_seed={_HASH_SEED},resize={GROWTH_BYTES_MAX // BLOCK_BYTES},root_owner=0:0,nodiscard,"
        "lazy_itable_init=0,lazy_journal_init=0,assume_storage_prezeroed=1"
    )
    words = ["-q", "-F", "-t", "ext4", "-b", str(BLOCK_BYTES), "-I", str(_INODE_BYTES), "-N", str(inodes), "-m", "0"]
    words += ["-e", "remount-ro", "-U", _UUID, "-J", f"size={_JOURNAL_MIB}", "-O", _FEATURES, "-E", extended]
    try:
        with disk.open("wb") as file:
            file.truncate(size_bytes)
    except OSError as error:
        raise map_os_error(error, thing, disk.parent) from error
    environment = {"E2FSPROGS_FAKE_TIME": str(IMAGE_EPOCH_S), "MKE2FS_CONFIG": "/dev/null", "TZ": "UTC"}
    call = ToolCall("mke2fs", (*words, "-d", rootfs.name, disk.name), thing, MAKE_DEADLINE_S, disk.parent, environment)
    await run_tool(call)


async def _set_change_times(tree: TreeSize, disk: Path, thing: str) -> None:
    """Inodes are numbered in the order of the copy, so those of the tree are the first ones after the reserved."""
    last = _FIRST_INODE + tree.inodes
    script = "".join(f"set_inode_field <{inode}> ctime @{IMAGE_EPOCH_S}\n" for inode in (2, *range(_FIRST_INODE, last)))
    environment = {"E2FSPROGS_FAKE_TIME": str(IMAGE_EPOCH_S)}
    call = ToolCall("debugfs", ("-w", "-f", "-", disk.name), thing, MAKE_DEADLINE_S, disk.parent, environment, script.encode())
    await run_tool(call)
