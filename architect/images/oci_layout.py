"""The parts of the OCI image specification that we read: index, manifest, configuration, and the layout on disk that holds them.

Foreign JSON: unknown fields are ignored, sizes are bounded, what is missing or of a wrong type is the image's fault. docker's
media types mean the same documents under other names.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from architect.errors import InvalidImageError

DOCUMENT_BYTES_MAX = 8 << 20
REF_NAME = "org.opencontainers.image.ref.name"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
INDEX_TYPES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
MANIFEST_TYPES = (OCI_MANIFEST, DOCKER_MANIFEST)


class Platform(msgspec.Struct, frozen=True):
    """The machine that an image is for."""

    architecture: str = ""
    os: str = ""


class Descriptor(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A pointer to a blob by its content."""

    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] = {}
    platform: Platform | None = None

    @property
    def hex_digest(self) -> str:
        """The SHA-256 alone."""
        return self.digest.removeprefix("sha256:")


class Index(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A list of manifests: a layout's images, or an image's platforms."""

    manifests: tuple[Descriptor, ...]
    schema_version: int = 2
    media_type: str = ""


class Manifest(msgspec.Struct, frozen=True, rename="camel"):
    """An image: its configuration and its layers, lowest first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    media_type: str = ""


class ContainerConfig(msgspec.Struct, frozen=True, rename="pascal"):
    """How the image's process starts."""

    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    env: tuple[str, ...] | None = None
    user: str | None = None
    working_dir: str | None = None
    stop_signal: str | None = None


class ImageConfig(msgspec.Struct, frozen=True):
    """The image's configuration document."""

    architecture: str = ""
    os: str = ""
    config: ContainerConfig | None = None

    @property
    def container(self) -> ContainerConfig:
        """The process part; empty where the image has none."""
        return self.config or ContainerConfig()


DocumentT = TypeVar("DocumentT", Index, Manifest, ImageConfig)
_DECODERS: dict[type[Any], msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind) for kind in (Index, Manifest, ImageConfig)
}


def decode(document: bytes, kind: type[DocumentT], thing: str) -> DocumentT:
    """A document of the image.

    Raises:
        InvalidImageError: it is not JSON, or not of that kind.
    """
    try:
        decoded: DocumentT = _DECODERS[kind].decode(document)
    except msgspec.DecodeError as error:
        raise InvalidImageError(
            thing, f"its {kind.__name__.lower()} is broken: {error}", "build or pull the image again"
        ) from error
    return decoded


class Layout:
    """An OCI image layout on disk, read only. `thing` is what errors name."""

    def __init__(self, directory: Path, thing: str) -> None:
        self.directory = directory
        self.thing = thing

    def index(self) -> Index:
        """The list of the layout's images.

        Raises:
            InvalidImageError: the directory does not exist, or is no layout.
        """
        if not self.directory.is_dir():
            raise InvalidImageError(self.thing, f"{self.directory} is not a directory that exists", "check the path")
        try:
            if not (self.directory / "oci-layout").is_file():
                raise FileNotFoundError("it has no file oci-layout")
            document = _read(self.directory / "index.json")
        except OSError as error:
            raise InvalidImageError(
                self.thing, f"{self.directory} is not an OCI layout: {error}", "make one with: skopeo copy SOURCE oci:DIR:TAG"
            ) from error
        return decode(document, Index, self.thing)

    def blob(self, descriptor: Descriptor) -> bytes:
        """A document of the layout, its hash verified.

        Raises:
            InvalidImageError: it is missing, too large, or not what the descriptor promises.
        """
        hex_digest = descriptor.hex_digest
        if len(hex_digest) != 64 or not all(c in "0123456789abcdef" for c in hex_digest):
            raise InvalidImageError(self.thing, f"digest {descriptor.digest} is not a SHA-256", "build the image again")
        try:
            document = _read(self.directory / "blobs" / "sha256" / hex_digest)
        except OSError as error:
            raise InvalidImageError(self.thing, f"a part is missing or unreadable: {error}", "build or pull it again") from error
        if hashlib.sha256(document).hexdigest() != hex_digest:
            raise InvalidImageError(self.thing, f"blob {descriptor.digest} does not match its hash", "build or pull it again")
        return document

    def read(self, descriptor: Descriptor, kind: type[DocumentT]) -> DocumentT:
        """A document of the layout, decoded.

        Raises:
            InvalidImageError: it is missing or broken.
        """
        return decode(self.blob(descriptor), kind, self.thing)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        document = file.read(DOCUMENT_BYTES_MAX + 1)
    if len(document) > DOCUMENT_BYTES_MAX:
        raise OSError(f"{path.name} is larger than {DOCUMENT_BYTES_MAX} bytes")
    return document
