"""What an OCI image says of the process to run, as far as a VM needs it."""

from __future__ import annotations

import msgspec


class ProcessConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The image's process as an OCI runtime would start it: entrypoint and cmd joined, the user resolved to numbers.

    Source: OCI image specification, "Image Configuration" and "Conversion to OCI Runtime Configuration".
    """

    args: tuple[str, ...]
    env: tuple[str, ...] = ()
    cwd: str = "/"
    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    stop_signal: str = "SIGTERM"


class BaseDiskRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A read-only base disk by content: `digest` is the SHA-256 of the raw file as 64 hex digits."""

    digest: str
    size_bytes: int
