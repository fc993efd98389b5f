"""An image becomes a directory tree and a process: skopeo copies it, umoci unpacks its layers and resolves its user.

umoci 0.4 takes OCI manifests with plain or gzip layers and verifies every blob and every layer's hash. A layout whose image is of
that kind is unpacked from where it lies; everything else (docker media types, zstd layers, archives, registries) goes through one
`skopeo copy` into a layout of our own first.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from architect.errors import ArchitectError, HostError, InvalidImageError
from architect.images.image_process import ImageProcess, stop_signal_name
from architect.images.locate import ARCHITECTURE, LayoutSource, LocatedImage, SkopeoSource, registry_error, wrong_architecture
from architect.images.oci_layout import OCI_MANIFEST, REF_NAME, Descriptor, ImageConfig, Index, Layout, Manifest
from architect.images.tool import ToolCall, ToolFailedError, run_tool
from architect.runtime.cancellation import run_in_thread_to_end

COPY_DEADLINE_S = 1800.0
UNPACK_DEADLINE_S = 1800.0
_TAG = "image"
_POLICY = Path("/etc/containers/policy.json")
_OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
_FOREIGN_LAYER = "application/vnd.oci.image.layer.nondistributable.v1.tar"
_DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
_DOCKER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar"
_UNPACKED_LAYERS = tuple(f"{kind}{pack}" for kind in (_OCI_LAYER, _FOREIGN_LAYER) for pack in ("", "+gzip"))
_CONVERTED_LAYERS = (
    *(f"{kind}{pack}" for kind in (_OCI_LAYER, _FOREIGN_LAYER) for pack in ("+zstd",)),
    *(f"{kind}{pack}" for kind in (_DOCKER_LAYER, _DOCKER_FOREIGN) for pack in ("", ".gzip", ".zstd")),
)


class RuntimeUser(msgspec.Struct, frozen=True, rename="camel"):
    """`process.user` of an OCI runtime configuration."""

    uid: int
    gid: int
    additional_gids: tuple[int, ...] = ()


class RuntimeProcess(msgspec.Struct, frozen=True):
    """`process` of an OCI runtime configuration."""

    user: RuntimeUser
    env: tuple[str, ...] = ()
    cwd: str = "/"


class RuntimeConfig(msgspec.Struct, frozen=True):
    """What we read of the runtime configuration that umoci writes."""

    process: RuntimeProcess


_RUNTIME_CONFIG_DECODER = msgspec.json.Decoder(RuntimeConfig)


class UnpackedImage(msgspec.Struct, frozen=True):
    """The image's root directory, and its process."""

    rootfs: Path
    process: ImageProcess


async def unpack_image(image: LocatedImage, workspace: Path, thing: str) -> UnpackedImage:
    """Unpack the image under `workspace`, an empty directory of the caller's that the caller removes.

    Raises:
        InvalidImageError: the image is broken or cannot run in our VMs; the cause says why.
        UnavailableError: its registry does not answer.
        CapacityError: the disk is full.
        HostError: a tool is missing, or did not end in time.
    """
    layout = await _local_layout(image, workspace, thing)
    manifest, config = await asyncio.to_thread(_read_image, layout)
    if config.architecture not in ("", ARCHITECTURE) or config.os not in ("", "linux"):
        raise wrong_architecture(thing, f"{config.os or 'linux'}/{config.architecture}")
    for layer in manifest.layers:
        if layer.media_type not in _UNPACKED_LAYERS:
            raise _unsupported_layer(thing, layer.media_type)
    rootfs = workspace / "rootfs"
    source = f"{layout.directory.name}:{_TAG}"
    await _umoci(("raw", "unpack", "--image", source, rootfs.name), workspace, thing)
    await _umoci(("raw", "runtime-config", "--image", source, "--rootfs", rootfs.name, "runtime.json"), workspace, thing)
    runtime = _RUNTIME_CONFIG_DECODER.decode((workspace / "runtime.json").read_bytes()).process
    return UnpackedImage(rootfs, _image_process(config, runtime, thing))


def _image_process(config: ImageConfig, runtime: RuntimeProcess, thing: str) -> ImageProcess:
    return ImageProcess(
        entrypoint=config.container.entrypoint or (),
        cmd=config.container.cmd or (),
        env=runtime.env,
        cwd=f"/{runtime.cwd.lstrip('/')}",
        uid=runtime.user.uid,
        gid=runtime.user.gid,
        groups=runtime.user.additional_gids,
        stop_signal=stop_signal_name(config.container.stop_signal, thing),
    )


async def _local_layout(image: LocatedImage, workspace: Path, thing: str) -> Layout:
    """A layout in the workspace with the image as its only one, of the media types that umoci unpacks."""
    copied = workspace / "copied"
    match image.source:
        case LayoutSource(directory, descriptor):
            selected = await run_in_thread_to_end(_select, directory, descriptor, workspace / "selected", thing)
            if await asyncio.to_thread(_is_unpackable, selected, descriptor):
                return selected
            await _copy(SkopeoSource("oci:selected"), copied, thing)
        case SkopeoSource():
            await _copy(image.source, copied, thing)
    return Layout(copied, thing)


def _select(directory: Path, descriptor: Descriptor, selected: Path, thing: str) -> Layout:
    """A layout of the one image, whose blobs are those of `directory`: nothing is copied, and its tag is ours."""
    selected.mkdir()
    (selected / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (selected / "blobs").symlink_to((directory / "blobs").absolute())
    tagged = Descriptor(descriptor.media_type, descriptor.digest, descriptor.size, {REF_NAME: _TAG})
    (selected / "index.json").write_bytes(msgspec.json.encode({"schemaVersion": 2, "manifests": [msgspec.to_builtins(tagged)]}))
    return Layout(selected, thing)


def _is_unpackable(layout: Layout, descriptor: Descriptor) -> bool:
    manifest = layout.read(descriptor, Manifest)
    for layer in manifest.layers:
        if layer.media_type not in (*_UNPACKED_LAYERS, *_CONVERTED_LAYERS):
            raise _unsupported_layer(layout.thing, layer.media_type)
    return descriptor.media_type == OCI_MANIFEST and all(layer.media_type in _UNPACKED_LAYERS for layer in manifest.layers)


def _read_image(layout: Layout) -> tuple[Manifest, ImageConfig]:
    index: Index = layout.index()
    manifest = layout.read(index.manifests[0], Manifest)
    return manifest, layout.read(manifest.config, ImageConfig)


async def _copy(source: SkopeoSource, destination: Path, thing: str) -> None:
    """`skopeo copy` into a new layout; a host without a signature policy accepts every image."""
    policy = () if _POLICY.exists() else ("--insecure-policy",)
    words = ("--tmpdir", ".", "copy", "--quiet", "--format", "oci", "--dest-compress-format", "gzip")
    target = f"oci:{destination.name}:{_TAG}"
    call = ToolCall("skopeo", (*policy, *words, *source.options, source.name, target), thing, COPY_DEADLINE_S, destination.parent)
    try:
        await run_tool(call)
    except ToolFailedError as error:
        raise _copy_error(source, error) from error


def _copy_error(source: SkopeoSource, error: ToolFailedError) -> ArchitectError:
    if "unsupported" in error.message.lower() and "media type" in error.message.lower():
        return _unsupported_layer(error.thing, error.message)
    if source.name.startswith("docker://"):
        return registry_error(error)
    return InvalidImageError(error.thing, f"it cannot be read: {error.message}", "build or pull it again")


async def _umoci(arguments: tuple[str, ...], workspace: Path, thing: str) -> None:
    try:
        await run_tool(ToolCall("umoci", arguments, thing, UNPACK_DEADLINE_S, workspace))
    except ToolFailedError as error:
        raise _umoci_error(error) from error


def _umoci_error(error: ToolFailedError) -> ArchitectError:
    if "parse user spec" in error.message or "no matching entries" in error.message:
        cause = error.message.rpartition("cannot parse user spec: ")[2]
        return InvalidImageError(
            error.thing, f"its user does not resolve: {cause}", "add the user to the image, or set USER to a number"
        )
    if "operation not permitted" in error.message or "permission denied" in error.message:
        return HostError(error.thing, f"umoci may not unpack it: {error.message}", "run the agent as root")
    return InvalidImageError(error.thing, f"it cannot be unpacked: {error.message}", "build or pull it again")


def _unsupported_layer(thing: str, media_type: str) -> InvalidImageError:
    return InvalidImageError(
        thing, f"unsupported layer type {media_type}", "use an image whose layers are tar, tar+gzip or tar+zstd, not encrypted"
    )
