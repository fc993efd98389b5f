"""References as users write them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from architect.errors import UsageError
from architect.images.reference import (
    ArchiveReference,
    LayoutReference,
    RegistryReference,
    absolute_reference,
    parse_reference,
)


def test_a_layout_is_a_directory_and_perhaps_a_tag() -> None:
    assert parse_reference("oci:/srv/images") == LayoutReference(Path("/srv/images"), None)
    assert parse_reference("oci:images:7.2") == LayoutReference(Path("images"), "7.2")
    assert parse_reference("oci:/x:docker.io/library/redis:7") == LayoutReference(Path("/x"), "docker.io/library/redis:7")


def test_an_archive_is_a_file_and_perhaps_a_name() -> None:
    assert parse_reference("docker-archive:/x.tar") == ArchiveReference(Path("/x.tar"), None)
    assert parse_reference("docker-archive:x.tar:redis:7") == ArchiveReference(Path("x.tar"), "redis:7")


@pytest.mark.parametrize(
    ("text", "repository", "tag"),
    [
        ("redis", "docker.io/library/redis", "latest"),
        ("docker://redis:7", "docker.io/library/redis", "7"),
        ("me/app:1", "docker.io/me/app", "1"),
        ("ghcr.io/me/app", "ghcr.io/me/app", "latest"),
        ("docker://localhost:5000/app:x", "localhost:5000/app", "x"),
        ("localhost/app", "localhost/app", "latest"),
        ("[::1]:5000/app", "[::1]:5000/app", "latest"),
    ],
)
def test_a_registry_name_is_completed_as_docker_does(text: str, repository: str, tag: str) -> None:
    reference = parse_reference(text)
    assert isinstance(reference, RegistryReference)
    assert (reference.repository, reference.tag, reference.digest) == (repository, tag, None)


def test_a_digest_is_kept_beside_the_tag() -> None:
    digest = f"sha256:{'a' * 64}"
    assert parse_reference(f"redis:7@{digest}") == RegistryReference("docker.io", "library/redis", "7", digest)


def test_only_registries_of_this_machine_are_local() -> None:
    local = [parse_reference(t) for t in ("localhost:5000/a", "127.0.0.1/a", "[::1]:1/a", "redis", "ghcr.io/a")]
    assert [isinstance(r, RegistryReference) and r.is_local for r in local] == [True, True, True, False, False]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "oci:",
        "oci:/x:",
        "docker-archive:",
        "docker://",
        "/srv/images",
        "./images",
        "dir:/x",
        "docker-daemon:redis",
        "Redis",
        "redis:",
        "redis@sha256:12",
        "re dis",
        "http://x/y",
        "-x",
    ],
)
def test_other_words_are_refused_with_a_next_step(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_reference(text)
    assert "oci:DIR" in caught.value.next_step


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_a_reference_or_a_usage_error(text: str) -> None:
    try:
        parse_reference(text)
    except UsageError as error:
        assert "\n" not in str(error)


def test_a_relative_path_is_made_absolute_and_the_rest_is_kept() -> None:
    here = Path("/home/me")
    assert absolute_reference("oci:images:x", here) == "oci:/home/me/images:x"
    assert absolute_reference("oci:images", here) == "oci:/home/me/images"
    assert absolute_reference("docker-archive:/a.tar:b:1", here) == "docker-archive:/a.tar:b:1"
    assert absolute_reference("redis:7", here) == "redis:7"
