"""The JSON file of a benchmark: written whole or not at all, indented for people."""

from __future__ import annotations

from pathlib import Path

import msgspec


def write_json(path: Path, document: msgspec.Struct) -> None:
    """Write the document at `path`, in the place of what was there; its folder is made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")
    temporary.rename(path)
