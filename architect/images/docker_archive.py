"""Reads what an archive of `docker save` holds: its `manifest.json` and the configurations that it names. Layers stay unread."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path

import msgspec

from architect.errors import InvalidImageError
from architect.images.oci_layout import DOCUMENT_BYTES_MAX
from architect.images.reference import RegistryReference, parse_reference

_MAKE_ONE = "make one with: docker save IMAGE -o FILE"


class ArchivedImage(msgspec.Struct, frozen=True, rename="pascal"):
    """An entry of `manifest.json`."""

    config: str
    repo_tags: tuple[str, ...] | None = None


_ARCHIVED_IMAGES_DECODER = msgspec.json.Decoder(tuple[ArchivedImage, ...])


class FoundImage(msgspec.Struct, frozen=True):
    """An image of an archive: its place in `manifest.json` and the hash of its configuration."""

    position: int
    config_digest: str


def find_in_archive(file: Path, name: str | None, thing: str) -> FoundImage:
    """The image called `name`, or the only one.

    Raises:
        InvalidImageError: no such file, not a docker archive, or no such image in it.
    """
    if not file.is_file():
        raise InvalidImageError(thing, f"{file} is not a file that exists", "check the path")
    try:
        with tarfile.open(file) as archive:
            images = _ARCHIVED_IMAGES_DECODER.decode(_member(archive, "manifest.json"))
            position = _choose(images, name, thing)
            config = _member(archive, images[position].config)
    except (tarfile.TarError, EOFError, KeyError, OSError, msgspec.DecodeError) as error:
        # tarfile tells of each compression that it has tried, a line each.
        cause = "it is no tar file" if isinstance(error, tarfile.ReadError) and "\n" in str(error) else str(error)
        raise InvalidImageError(thing, f"{file} is not a docker archive: {cause}", _MAKE_ONE) from error
    return FoundImage(position, f"sha256:{hashlib.sha256(config).hexdigest()}")


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.extractfile(name)
    if member is None:
        raise KeyError(f"{name} is not a file")
    document = member.read(DOCUMENT_BYTES_MAX + 1)
    if len(document) > DOCUMENT_BYTES_MAX:
        raise OSError(f"{name} is larger than {DOCUMENT_BYTES_MAX} bytes")
    return document


def _choose(images: tuple[ArchivedImage, ...], name: str | None, thing: str) -> int:
    if name is None and len(images) == 1:
        return 0
    listed = ", ".join(tag for image in images for tag in image.repo_tags or ()) or "none has a name"
    if name is None:
        raise InvalidImageError(thing, f"it holds {len(images)} images", f"add one of their names after a colon: {listed}")
    for position, image in enumerate(images):
        if any(name == tag or _full_name(name) == _full_name(tag) for tag in image.repo_tags or ()):
            return position
    raise InvalidImageError(thing, f"it holds no image {name}", f"use one of the names that exist: {listed}")


def _full_name(name: str) -> str:
    reference = parse_reference(f"docker://{name}")
    assert isinstance(reference, RegistryReference)
    return f"{reference.repository}:{reference.tag}"
