"""IMAGE as users write it: an OCI layout, a docker archive, or a name in a registry (DESIGN §5).

::

    oci:DIR[:TAG]                  a directory in the OCI image layout; without TAG its only image, or the one tagged `latest`
    docker-archive:FILE[:REF]      what `docker save` wrote; without REF its only image
    docker://NAME, or NAME         a registry reference, [HOST[:PORT]/]PATH[:TAG][@DIGEST], as docker completes it

This module looks at words only; whether the image exists is `locate.py`'s question. A path may not contain a colon, as in skopeo.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from architect.errors import UsageError

FORMS = "write oci:DIR[:TAG], docker-archive:FILE[:REF], or a registry reference such as docker://docker.io/library/redis:7"
_OTHER_TRANSPORTS = ("docker-daemon", "containers-storage", "dir", "oci-archive", "ostree", "sif", "tarball")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\])(?::\d{1,5})?")
_PATH = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class LayoutReference(msgspec.Struct, frozen=True, tag="oci"):
    """An image in an OCI layout."""

    directory: Path
    tag: str | None


class ArchiveReference(msgspec.Struct, frozen=True, tag="docker-archive"):
    """An image in a docker archive."""

    file: Path
    name: str | None


class RegistryReference(msgspec.Struct, frozen=True, tag="docker"):
    """An image in a registry; `digest` overrules `tag`."""

    host: str
    path: str
    tag: str
    digest: str | None

    @property
    def repository(self) -> str:
        """Host and path."""
        return f"{self.host}/{self.path}"

    @property
    def is_local(self) -> bool:
        """Whether the registry is on this machine, where plain HTTP is allowed (as docker allows it)."""
        return self.host.partition(":")[0] in ("localhost", "127.0.0.1") or self.host.startswith("[::1]")


ImageReference = LayoutReference | ArchiveReference | RegistryReference


def parse_reference(text: str) -> ImageReference:
    """The reference that the user wrote.

    Raises:
        UsageError: it has none of the three forms.
    """
    scheme, colon, rest = text.partition(":")
    if scheme == "oci" and colon:
        path, tag = _path_and_name(text, rest)
        return LayoutReference(path, tag)
    if scheme == "docker-archive" and colon:
        path, name = _path_and_name(text, rest)
        return ArchiveReference(path, name)
    if text.startswith("docker://"):
        return _registry(text, text.removeprefix("docker://"))
    if colon and scheme in _OTHER_TRANSPORTS:
        raise UsageError(f"image {text}", f"{scheme}: is not supported", FORMS)
    if text.startswith(("/", "./", "../", "~")):
        raise UsageError(f"image {text}", "a path alone does not say what is there", "write oci:DIR or docker-archive:FILE")
    return _registry(text, text)


def absolute_reference(text: str, directory: Path) -> str:
    """The same reference with its path made absolute from `directory`, so that a process elsewhere can read it.

    Raises:
        UsageError: it is no reference.
    """
    match parse_reference(text):
        case LayoutReference(path, tag):
            return f"oci:{directory / path}" + (f":{tag}" if tag else "")
        case ArchiveReference(path, name):
            return f"docker-archive:{directory / path}" + (f":{name}" if name else "")
        case _:
            return text


def _path_and_name(text: str, rest: str) -> tuple[Path, str | None]:
    path, colon, name = rest.partition(":")
    if not path or "\0" in rest or (colon and not name):
        raise UsageError(f"image {text}", "no path, or an empty name after it", FORMS)
    return Path(path), name or None


def _registry(text: str, rest: str) -> RegistryReference:
    name, at, digest = rest.partition("@")
    head, slash, last = name.rpartition("/")
    last, colon, tag = last.partition(":")
    host, path = _host_and_path(f"{head}{slash}{last}")
    valid = _HOST.fullmatch(host) and _PATH.fullmatch(path) and len(host) + len(path) <= 255
    if not valid or (colon and not _TAG.fullmatch(tag)) or (at and not _DIGEST.fullmatch(digest)):
        raise UsageError(f"image {text}", "not a registry reference", FORMS)
    return RegistryReference(host, path, tag or "latest", digest or None)


def _host_and_path(name: str) -> tuple[str, str]:
    """docker's rule: the first part is a host if it has a dot or a colon or is localhost; else all is a path of docker.io."""
    first, slash, rest = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return first, rest
    return "docker.io", name if slash else f"library/{name}"
