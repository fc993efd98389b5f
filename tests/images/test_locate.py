"""What is said of an image that is not there, or not what it should be."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
from pathlib import Path

import msgspec
import pytest

from architect.errors import InvalidImageError, UnavailableError
from architect.images.locate import LocatedImage, SkopeoSource, locate_image, registry_error
from architect.images.reference import parse_reference
from architect.images.tool import ToolFailedError
from architect.testing.sample_layout import ImageSettings, text, write_blob, write_image

INDEX = "application/vnd.oci.image.index.v1+json"


def locate(reference: str) -> LocatedImage:
    return asyncio.run(locate_image(parse_reference(reference), f"image {reference}"))


def small_image(layout: Path, tag: str, content: str = "x") -> str:
    return write_image(layout, tag, {"/x": text(content)}, ImageSettings(cmd=("/x",)))


def archive(path: Path, *names: tuple[str, ...]) -> Path:
    images = [{"Config": f"{i}.json", "RepoTags": list(tags), "Layers": []} for i, tags in enumerate(names)]
    members = {"manifest.json": json.dumps(images)} | {f"{i}.json": f'{{"n":{i}}}' for i in range(len(names))}
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content.encode()))
    return path


def test_an_image_is_known_by_its_manifests_digest(tmp_path: Path) -> None:
    first, second = small_image(tmp_path, "a"), small_image(tmp_path, "b")
    assert locate(first).digest == locate(second).digest
    assert locate(small_image(tmp_path, "c", "y")).digest != locate(first).digest


def test_without_a_tag_the_only_image_or_the_latest_is_meant(tmp_path: Path) -> None:
    only = locate(small_image(tmp_path, "a"))
    assert locate(f"oci:{tmp_path}") == only
    small_image(tmp_path, "b", "y")
    with pytest.raises(InvalidImageError, match="none is tagged latest; use one of the tags that exist: a, b"):
        locate(f"oci:{tmp_path}")
    latest = locate(small_image(tmp_path, "latest", "z"))
    assert locate(f"oci:{tmp_path}") == latest


def test_a_missing_tag_is_answered_with_those_that_exist(tmp_path: Path) -> None:
    small_image(tmp_path, "one")
    with pytest.raises(InvalidImageError, match="there is no tag two; use one of the tags that exist: one"):
        locate(f"oci:{tmp_path}:two")


def test_a_path_that_is_no_layout_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidImageError, match="not a directory that exists"):
        locate(f"oci:{tmp_path}/none:x")
    with pytest.raises(InvalidImageError, match="not an OCI layout"):
        locate(f"oci:{tmp_path}:x")
    (tmp_path / "oci-layout").write_text("{}")
    (tmp_path / "index.json").write_text('{"manifests": 5}')
    with pytest.raises(InvalidImageError, match="its index is broken"):
        locate(f"oci:{tmp_path}:x")


def write_index(layout: Path, platforms: tuple[tuple[str, str], ...]) -> str:
    """An image of several platforms, tagged `many`; returns the reference."""
    small_image(layout, "part")
    part = msgspec.json.decode((layout / "index.json").read_bytes())["manifests"][0]
    del part["annotations"]
    manifests = [part | {"platform": {"os": system, "architecture": machine}} for system, machine in platforms]
    descriptor = write_blob(layout, INDEX, msgspec.json.encode({"schemaVersion": 2, "manifests": manifests}))
    tagged = descriptor | {"annotations": {"org.opencontainers.image.ref.name": "many"}}
    (layout / "index.json").write_bytes(msgspec.json.encode({"schemaVersion": 2, "manifests": [tagged]}))
    return f"oci:{layout}:many"


def test_of_several_platforms_ours_is_taken(tmp_path: Path) -> None:
    reference = write_index(tmp_path, (("linux", "arm64"), ("linux", "amd64")))
    assert locate(reference).digest == locate(small_image(tmp_path / "other", "x")).digest


def test_an_image_for_other_machines_names_them(tmp_path: Path) -> None:
    with pytest.raises(InvalidImageError, match="wrong architecture: it is for linux/arm64, linux/riscv64, VMs are linux/amd64"):
        locate(write_index(tmp_path, (("linux", "arm64"), ("linux", "riscv64"))))


def test_an_index_of_something_else_is_no_image(tmp_path: Path) -> None:
    small_image(tmp_path, "x")
    index = tmp_path / "index.json"
    index.write_text(index.read_text().replace("image.manifest.v1", "artifact.v9"))
    with pytest.raises(InvalidImageError, match="not an image"):
        locate(f"oci:{tmp_path}:x")


def test_an_archive_with_one_image_needs_no_name(tmp_path: Path) -> None:
    file = archive(tmp_path / "a.tar", ("redis:7",))
    found = locate(f"docker-archive:{file}")
    assert found.source == SkopeoSource(f"docker-archive:{file}:@0")
    assert locate(f"docker-archive:{file}:docker.io/library/redis:7") == found


def test_what_is_no_archive_is_told_in_a_few_words(tmp_path: Path) -> None:
    file = tmp_path / "passwd"
    file.write_text("root:x:0:0:root:/root:/bin/bash\n" * 40)
    with pytest.raises(InvalidImageError, match="is not a docker archive: it is no tar file; "):
        locate(f"docker-archive:{file}")


def test_an_archive_with_several_images_needs_one(tmp_path: Path) -> None:
    file = archive(tmp_path / "a.tar", ("redis:7",), ("me/app:latest",))
    with pytest.raises(InvalidImageError, match="it holds 2 images; add one of their names after a colon: redis:7, me/app:latest"):
        locate(f"docker-archive:{file}")
    assert locate(f"docker-archive:{file}:me/app").source == SkopeoSource(f"docker-archive:{file}:@1")
    with pytest.raises(InvalidImageError, match="it holds no image nope; use one of the names that exist: redis:7, me/app:latest"):
        locate(f"docker-archive:{file}:nope")


@pytest.mark.parametrize("content", [b"", b"x" * 2000, bytes(10240)])
def test_a_file_that_is_no_archive_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a.tar"
    file.write_bytes(content)
    with pytest.raises(InvalidImageError, match="not a docker archive"):
        locate(f"docker-archive:{file}")
    with pytest.raises(InvalidImageError, match="not a file that exists"):
        locate(f"docker-archive:{file}.none")


def test_a_cut_archive_is_named(tmp_path: Path) -> None:
    file = archive(tmp_path / "a.tar", ("redis:7",))
    file.write_bytes(file.read_bytes()[:700])
    with pytest.raises(InvalidImageError, match="not a docker archive"):
        locate(f"docker-archive:{file}")


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("reading manifest x in docker.io/library/redis: manifest unknown", InvalidImageError),
        ("requested access to the resource is denied", InvalidImageError),
        ("dial tcp: lookup registry.example on 10.0.0.1:53: no such host", UnavailableError),
        ("dial tcp 127.0.0.1:1: connect: connection refused", UnavailableError),
    ],
)
def test_a_registrys_refusal_is_the_images_fault_and_its_silence_is_not(message: str, kind: type[Exception]) -> None:
    assert type(registry_error(ToolFailedError("skopeo", "image x", message))) is kind
