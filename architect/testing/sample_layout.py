"""Writes small OCI images byte for byte the same every time: one layer, one manifest, several tags in one layout.

For tests and the demo; no network, no builder. Entries are sorted, owned by root unless they say otherwise, and dated the same.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import msgspec

REF_NAME = "org.opencontainers.image.ref.name"
LAYER = "application/vnd.oci.image.layer.v1.tar"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
_DATE_S = 1_700_000_000


class ImageFile(msgspec.Struct, frozen=True):
    """A file of an image: a directory, a symbolic link, or data (given, or read from `source` when the image is written)."""

    data: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    source: Path | None = None
    link: str | None = None
    is_directory: bool = False


class ImageSettings(msgspec.Struct, frozen=True):
    """The configuration of an image, as in a Dockerfile."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    user: str = ""
    working_dir: str = ""
    stop_signal: str = ""
    architecture: str = "amd64"


def directory(mode: int = 0o755) -> ImageFile:
    """A directory."""
    return ImageFile(mode=mode, is_directory=True)


def link(target: str) -> ImageFile:
    """A symbolic link."""
    return ImageFile(link=target)


def text(content: str, mode: int = 0o644) -> ImageFile:
    """A file of text."""
    return ImageFile(content.encode(), mode)


def program(source: Path) -> ImageFile:
    """An executable of this machine."""
    return ImageFile(mode=0o755, source=source)


def write_image(layout: Path, tag: str, files: Mapping[str, ImageFile], settings: ImageSettings, compressed: bool = False) -> str:
    """Add the image of `files` (absolute path → file; parents are made) to the OCI layout `layout`, made where it is missing, as
    `tag`; an image that had the tag loses it. Returns the reference, `oci:LAYOUT:TAG`."""
    layer = layer_tar(files)
    stored = gzip.compress(layer, 1, mtime=0) if compressed else layer
    config = {
        "architecture": settings.architecture,
        "os": "linux",
        "created": "2023-11-14T22:13:20Z",
        "config": _config(settings),
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    layer_type = LAYER + ("+gzip" if compressed else "")
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": write_blob(layout, CONFIG, msgspec.json.encode(config, order="sorted")),
        "layers": [write_blob(layout, layer_type, stored)],
    }
    tag_manifest(layout, tag, write_blob(layout, MANIFEST, msgspec.json.encode(manifest, order="sorted")))
    return f"oci:{layout}:{tag}"


def write_blob(layout: Path, media_type: str, blob: bytes) -> dict[str, object]:
    """Store a blob; returns its descriptor."""
    digest = hashlib.sha256(blob).hexdigest()
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    (blobs / digest).write_bytes(blob)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(blob)}


def tag_manifest(layout: Path, tag: str, descriptor: Mapping[str, object]) -> None:
    """Make `tag` name the blob of `descriptor`."""
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    index = layout / "index.json"
    manifests = msgspec.json.decode(index.read_bytes())["manifests"] if index.exists() else []
    kept = [entry for entry in manifests if entry["annotations"][REF_NAME] != tag]
    kept.append({**descriptor, "annotations": {REF_NAME: tag}})
    index.write_bytes(msgspec.json.encode({"schemaVersion": 2, "manifests": kept}))


def layer_tar(files: Mapping[str, ImageFile]) -> bytes:
    """The files as an uncompressed layer."""
    with_parents = dict(files)
    for path in files:
        for parent in PurePosixPath(path).parents:
            if str(parent) != "/":
                with_parents.setdefault(str(parent), directory())
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(with_parents):
            file = with_parents[path]
            data = file.source.read_bytes() if file.source else file.data
            archive.addfile(_member(path, file, len(data)), io.BytesIO(data))
    return buffer.getvalue()


def _member(path: str, file: ImageFile, size_bytes: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(path.lstrip("/"))
    member.mode, member.uid, member.gid, member.mtime = file.mode, file.uid, file.gid, _DATE_S
    if file.is_directory:
        member.type = tarfile.DIRTYPE
    elif file.link is not None:
        member.type, member.linkname, member.mode = tarfile.SYMTYPE, file.link, 0o777
    else:
        member.size = size_bytes
    return member


def _config(settings: ImageSettings) -> dict[str, object]:
    values: dict[str, object] = {
        "Entrypoint": list(settings.entrypoint),
        "Cmd": list(settings.cmd),
        "Env": list(settings.env),
        "User": settings.user,
        "WorkingDir": settings.working_dir,
        "StopSignal": settings.stop_signal,
    }
    return {name: value for name, value in values.items() if value}
