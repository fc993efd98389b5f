"""Finds the image that a reference names, and its digest, without copying it.

The digest is that of the manifest for our architecture (for a docker archive, which has none, that of the configuration, which
lists the layers' hashes): equal digests mean equal content, so a known digest needs no unpacking.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from pathlib import Path

import msgspec

from architect.errors import ArchitectError, InvalidImageError, UnavailableError
from architect.images.docker_archive import find_in_archive
from architect.images.oci_layout import INDEX_TYPES, MANIFEST_TYPES, REF_NAME, Descriptor, Index, Layout, decode
from architect.images.reference import ArchiveReference, ImageReference, LayoutReference, RegistryReference
from architect.images.tool import ToolCall, ToolFailedError, run_tool

ARCHITECTURE = "amd64"
INSPECT_DEADLINE_S = 60.0
_INDEX_DEPTH_MAX = 4
_LISTED_TAGS_MAX = 20
_REFUSED = re.compile(r"unauthorized|denied|authentication required|forbidden", re.IGNORECASE)
_UNKNOWN = re.compile(r"manifest unknown|name unknown|not found|reading manifest|repository name not known", re.IGNORECASE)


class LayoutSource(msgspec.Struct, frozen=True):
    """The image lies in an OCI layout; `manifest` is its manifest."""

    directory: Path
    manifest: Descriptor


class SkopeoSource(msgspec.Struct, frozen=True):
    """The image is to be copied with skopeo from `name`."""

    name: str
    options: tuple[str, ...] = ()


class LocatedImage(msgspec.Struct, frozen=True):
    """An image by content, and where to get it. `digest` is `sha256:` and 64 hex digits."""

    digest: str
    source: LayoutSource | SkopeoSource


async def locate_image(reference: ImageReference, thing: str) -> LocatedImage:
    """Where the image is. `thing` is what errors name.

    Raises:
        InvalidImageError: there is no such image, or none for our architecture; the cause says which, the next step what there is.
        UnavailableError: the registry does not answer.
        HostError: skopeo is missing.
    """
    match reference:
        case LayoutReference(directory, tag):
            return await asyncio.to_thread(_locate_in_layout, Layout(directory, thing), tag)
        case ArchiveReference(file, name):
            found = await asyncio.to_thread(find_in_archive, file, name, thing)
            return LocatedImage(found.config_digest, SkopeoSource(f"docker-archive:{file.absolute()}:@{found.position}"))
        case RegistryReference():
            return await _locate_in_registry(reference, thing)


def _locate_in_layout(layout: Layout, tag: str | None) -> LocatedImage:
    index = layout.index()
    descriptor = _choose_tag(index, tag, layout.thing)
    for _ in range(_INDEX_DEPTH_MAX):
        if descriptor.media_type in MANIFEST_TYPES:
            return LocatedImage(descriptor.digest, LayoutSource(layout.directory, descriptor))
        if descriptor.media_type not in INDEX_TYPES:
            break
        descriptor = choose_platform(layout.read(descriptor, Index), layout.thing)
    raise InvalidImageError(layout.thing, f"it is a {descriptor.media_type}, not an image", "name a tag that is a container image")


def _choose_tag(index: Index, tag: str | None, thing: str) -> Descriptor:
    by_tag: dict[str, Descriptor] = {}
    for manifest in index.manifests:
        if name := manifest.annotations.get(REF_NAME):
            by_tag.setdefault(name, manifest)
    if tag is None and len(index.manifests) == 1:
        return index.manifests[0]
    wanted = tag or "latest"
    if wanted in by_tag:
        return by_tag[wanted]
    if not by_tag:
        raise InvalidImageError(thing, f"there is no tag {wanted}: the layout holds no tagged image", "tag one with: umoci tag")
    listed = ", ".join(sorted(by_tag)[:_LISTED_TAGS_MAX])
    cause = f"there is no tag {wanted}" if tag else "it has several images and none is tagged latest"
    raise InvalidImageError(thing, cause, f"use one of the tags that exist: {listed}")


def choose_platform(index: Index, thing: str) -> Descriptor:
    """The manifest for our architecture.

    Raises:
        InvalidImageError: there is none; names those that there are.
    """
    for manifest in index.manifests:
        if manifest.platform and (manifest.platform.os, manifest.platform.architecture) == ("linux", ARCHITECTURE):
            return manifest
    listed = ", ".join(sorted({f"{m.platform.os}/{m.platform.architecture}" for m in index.manifests if m.platform})) or "none"
    raise wrong_architecture(thing, listed)


def wrong_architecture(thing: str, found: str) -> InvalidImageError:
    """The error for an image that is for other machines."""
    return InvalidImageError(
        thing, f"wrong architecture: it is for {found}, VMs are linux/{ARCHITECTURE}", f"use an image for linux/{ARCHITECTURE}"
    )


async def _locate_in_registry(reference: RegistryReference, thing: str) -> LocatedImage:
    options = ("--tls-verify=false",) if reference.is_local else ()
    name = f"docker://{reference.repository}" + (f"@{reference.digest}" if reference.digest else f":{reference.tag}")
    try:
        document = await run_tool(ToolCall("skopeo", ("inspect", "--raw", *options, name), thing, INSPECT_DEADLINE_S, Path("/")))
    except ToolFailedError as error:
        raise registry_error(error) from error
    digest = f"sha256:{hashlib.sha256(document).hexdigest()}"
    # A list of platforms has `manifests`, an image has not; the media type inside the document is optional.
    if b'"manifests"' in document:
        digest = choose_platform(decode(document, Index, thing), thing).digest
    source = SkopeoSource(f"docker://{reference.repository}@{digest}", tuple(f"--src-{o.removeprefix('--')}" for o in options))
    return LocatedImage(digest, source)


def registry_error(error: ToolFailedError) -> ArchitectError:
    """What skopeo's failure against a registry means."""
    if _REFUSED.search(error.message):
        return InvalidImageError(
            error.thing, f"the registry refuses it: {error.message}", "check the name, or log this host in with: skopeo login"
        )
    if _UNKNOWN.search(error.message):
        return InvalidImageError(error.thing, f"the registry has no such image: {error.message}", "check its name and tag")
    return UnavailableError(
        error.thing,
        f"the registry does not answer: {error.message}",
        "see its network; a local host has no way out: `skopeo copy docker://NAME oci:DIR:TAG`, then run oci:DIR:TAG",
    )
