"""Sizes: pages, extents, and the sizes that users write (`256M`, `4GiB`, `1073741824`). All values are bytes."""

from __future__ import annotations

import re

from architect.errors import UsageError

PAGE_BYTES = 4096
EXTENT_BYTES = 65536
PAGES_PER_EXTENT = EXTENT_BYTES // PAGE_BYTES
MIB = 1 << 20
GIB = 1 << 30
OUTPUT_BYTES_MAX = 64 * MIB
"""What a host keeps of a VM's output; over that the older half goes."""
BANDWIDTH_BYTES_S_MIN = MIB
BANDWIDTH_BYTES_S_MAX = 1 << 40

_SIZE_BYTES_MAX = 1 << 60
_UNITS = {"": 1, "k": 1 << 10, "m": MIB, "g": GIB, "t": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)


def parse_size(text: str, what: str = "size") -> int:
    """Bytes of a size as users write it: a number with an optional K, M, G or T (powers of 1024).

    Raises:
        UsageError: it is not a size, or not a whole number of bytes, or zero, or more than 1024P.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{what} {text!r}", "not a size", "write a number with K, M, G or T, for example 512M")
    size_bytes = float(match[1]) * _UNITS[match[2].lower()]
    if size_bytes > _SIZE_BYTES_MAX:
        raise UsageError(f"{what} {text!r}", "more than any machine has", "write for example 512M")
    if size_bytes != int(size_bytes) or size_bytes <= 0:
        raise UsageError(f"{what} {text!r}", "not a positive whole number of bytes", "write for example 512M")
    return int(size_bytes)


def check_bandwidth(bytes_s: int, said: object) -> int:
    """The limit, if it can be one; `said` is how it was written.

    Raises:
        UsageError: it is too low or too high.
    """
    if not BANDWIDTH_BYTES_S_MIN <= bytes_s <= BANDWIDTH_BYTES_S_MAX:
        raise UsageError(f"--bandwidth {said}", "is not in 1M..1T bytes a second", "write for example 200M, or none")
    return bytes_s


def format_size(size_bytes: float) -> str:
    """A size for people, in binary units: `256.0 MiB`."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is not less than `value`."""
    return -(-value // multiple) * multiple
