"""Images from a registry: a real skopeo against a registry on the loopback."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from architect.errors import InvalidImageError, UnavailableError
from architect.images import BaseStore, PreparedImage, prepare_image
from architect.testing.sample_layout import ImageSettings, tag_manifest, text, write_blob, write_image
from tests.host.registry_server import registry

pytestmark = pytest.mark.host

INDEX = "application/vnd.oci.image.index.v1+json"


def prepare(reference: str, store: BaseStore) -> PreparedImage:
    return asyncio.run(prepare_image(reference, store, (), (), lambda line: None))


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    write_image(tmp_path / "layout", "v1", {"/x": text("x")}, ImageSettings(("/x",)), compressed=True)
    return tmp_path / "layout"


def test_an_image_is_pulled_once_and_is_the_one_of_the_layout(layout: Path, tmp_path: Path) -> None:
    store = BaseStore(tmp_path / "store")
    with registry(layout) as server:
        pulled = prepare(f"docker://{server.host}/me/app:v1", store)
        layers = [path for path in server.requests if "/blobs/" in path]
        assert layers
        assert prepare(f"{server.host}/me/app:v1", store) == pulled
        assert [path for path in server.requests if "/blobs/" in path] == layers
        assert prepare(f"{server.host}/me/app@{pulled.image_digest}", store) == pulled
    assert prepare(f"oci:{layout}:v1", BaseStore(tmp_path / "other")) == pulled


def test_of_several_platforms_ours_is_pulled(layout: Path, tmp_path: Path) -> None:
    part = msgspec.json.decode((layout / "index.json").read_bytes())["manifests"][0]
    del part["annotations"]
    many = [part | {"platform": {"os": "linux", "architecture": machine}} for machine in ("arm64", "amd64")]
    tag_manifest(layout, "many", write_blob(layout, INDEX, msgspec.json.encode({"schemaVersion": 2, "manifests": many})))
    tag_manifest(layout, "arm", write_blob(layout, INDEX, msgspec.json.encode({"schemaVersion": 2, "manifests": many[:1]})))
    store = BaseStore(tmp_path / "store")
    with registry(layout) as server:
        assert prepare(f"{server.host}/app:many", store).image_digest == part["digest"]
        with pytest.raises(InvalidImageError, match="wrong architecture: it is for linux/arm64"):
            prepare(f"{server.host}/app:arm", store)


def test_what_the_registry_says_no_to_is_told(layout: Path, tmp_path: Path) -> None:
    store = BaseStore(tmp_path / "store")
    with registry(layout) as server:
        with pytest.raises(InvalidImageError, match="the registry has no such image"):
            prepare(f"{server.host}/app:nope", store)
        with pytest.raises(InvalidImageError, match=r"the registry refuses it.*skopeo login"):
            prepare(f"{server.host}/private:v1", store)
        gone = server.host
    with pytest.raises(UnavailableError, match=r"does not answer.*connection refused"):
        prepare(f"{gone}/app:v1", store)
    assert store.used_bytes() == 0
