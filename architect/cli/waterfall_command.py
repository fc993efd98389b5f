"""`architect waterfall`: draws how a move spent its time."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from architect.cli.client import Client
from architect.cli.output import Output
from architect.cli.waterfall import render
from architect.errors import HostError, NotFoundError


def waterfall(options: argparse.Namespace) -> int:
    """Draw a move into a file: the one with that id, or the last one of that VM."""
    output = Output(as_json=options.json)
    move = _chosen(Client(options.state_dir).get("/v1/migrations", of=options.move), options.move)
    path = Path(options.file or f"{move['vm']}-{move['id']}.svg")
    try:
        path.write_text(render(move))
    except OSError as error:
        raise HostError(f"file {path}", str(error.strerror), "name a file that can be written") from error
    if output.as_json:
        output.document({"migration": move["id"], "file": str(path)})
    else:
        output.line(f"{path}: {move['vm']}, {move['source']} to {move['target']}, {len(move['spans'])} spans")
    return 0


def _chosen(moves: list[dict[str, Any]], wanted: str) -> dict[str, Any]:
    drawable = [move for move in moves if move["spans"]]
    if not drawable:
        cause = "has no spans yet" if moves else "is neither a move nor a vm that has moved"
        raise NotFoundError(f"move {wanted}", cause, "see `architect events` for moves")
    return drawable[-1]
