"""Compression: what is wished of the bulk of a move, memory and disk, on its way from host to host."""

from __future__ import annotations

from enum import StrEnum


class Compression(StrEnum):
    """`auto`: where and while it makes the move quicker, by measurement; `zstd`: always; `off`: never."""

    AUTO = "auto"
    OFF = "off"
    ZSTD = "zstd"
