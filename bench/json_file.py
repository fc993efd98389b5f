"""The JSON file of a benchmark: written whole or not at all, indented for people."""

from __future__ import annotations

from pathlib import Path

import msgspec

from architect.runtime.whole_file import write_whole


def write_json(path: Path, document: msgspec.Struct) -> None:
    """Write the document at `path`, in the place of what was there; its folder is made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n", mode=0o644)
