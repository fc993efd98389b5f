"""An image becomes a base disk: locate, look up, or else unpack, build and remember.

The record of an image (by the digest of its content and our builder's version) names the base that it became and its process, so
that a second VM of the image costs milliseconds. One process builds an image at a time, whoever else wants it waits for the
result. Everything happens in a workspace of the store: a failure, a cancellation or a crash leaves nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable

import msgspec

from architect.images.base_store import BaseStore
from architect.images.ext4 import build_ext4
from architect.images.image_process import ImageProcess, merge_environment, process_config
from architect.images.locate import LocatedImage, locate_image
from architect.images.reference import parse_reference
from architect.images.rootfs import add_mount_points, settle_times
from architect.images.tool import map_os_error
from architect.images.unpack import unpack_image
from architect.model.image import BaseDiskRef, ProcessConfig
from architect.model.sizes import format_size
from architect.runtime.cancellation import run_in_thread_to_end
from architect.runtime.whole_file import write_whole

# Part of every record's name; it changes when the same image would become another disk or another process.
BUILDER_VERSION = 1
BUILD_DEADLINE_S = 3600.0


class PreparedImage(msgspec.Struct, frozen=True):
    """An image that is ready to run: its process for one VM, its disk in the store, and the image's own digest."""

    process: ProcessConfig
    base: BaseDiskRef
    image_digest: str


class ImageRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an image became."""

    image_digest: str
    base: BaseDiskRef
    process: ImageProcess


_IMAGE_RECORD_DECODER = msgspec.json.Decoder(ImageRecord)


async def prepare_image(
    reference: str, store: BaseStore, args: tuple[str, ...], env: tuple[str, ...], progress: Callable[[str], None]
) -> PreparedImage:
    """The image as a base disk in `store`, and the process of a VM whose user adds `args` and `env`.

    `progress` is told each slow step in a few words. Idempotent. After an error or a cancellation the store is as before.

    Raises:
        UsageError: `reference` is no reference, or `env` no list of K=V.
        InvalidImageError: the image does not exist or cannot run; the cause says which, the next step what to do.
        UnavailableError: the image's registry does not answer.
        CapacityError: the disk is full.
        ConflictError: another process has been building the same image for an hour.
        HostError: this host lacks a tool or a right.
    """
    thing = f"image {reference}"
    merge_environment((), env)
    image = await locate_image(parse_reference(reference), thing)
    record = _read_record(store, image)
    if record is None:
        async with store.lock(_record_name(image), BUILD_DEADLINE_S):
            record = _read_record(store, image) or await _build(image, store, thing, progress)
    process = process_config(record.process, args, env, thing)
    return PreparedImage(process, record.base, image.digest)


async def _build(image: LocatedImage, store: BaseStore, thing: str, progress: Callable[[str], None]) -> ImageRecord:
    started_s = time.time()
    async with store.workspace() as workspace:
        progress(f"{thing}: copying and unpacking")
        unpacked = await unpack_image(image, workspace, thing)
        try:
            await run_in_thread_to_end(add_mount_points, unpacked.rootfs, unpacked.process.cwd, thing)
            tree = await run_in_thread_to_end(settle_times, unpacked.rootfs, started_s)
        except OSError as error:
            raise map_os_error(error, thing, store.root) from error
        progress(f"{thing}: making the disk of {tree.inodes} files, {format_size(tree.content_bytes)}")
        disk = workspace / "disk.raw"
        await build_ext4(unpacked.rootfs, tree, disk, thing)
        base = await run_in_thread_to_end(store.adopt, disk)
        record = ImageRecord(image.digest, base, unpacked.process)
        await asyncio.to_thread(_write_record, store, image, record, thing)
    return record


def _record_name(image: LocatedImage) -> str:
    return hashlib.sha256(f"{BUILDER_VERSION} {image.digest}".encode()).hexdigest()


def _read_record(store: BaseStore, image: LocatedImage) -> ImageRecord | None:
    """The record, if it is whole and its base is still in the store: both can be made again, so neither is worth an error."""
    try:
        record = _IMAGE_RECORD_DECODER.decode(store.record_path(_record_name(image)).read_bytes())
    except (OSError, msgspec.DecodeError):
        return None
    return record if record.image_digest == image.digest and store.get(record.base.digest) else None


def _write_record(store: BaseStore, image: LocatedImage, record: ImageRecord, thing: str) -> None:
    try:
        write_whole(store.record_path(_record_name(image)), msgspec.json.encode(record), mode=0o644)
    except OSError as error:
        raise map_os_error(error, thing, store.root) from error
