"""A benchmark's file is replaced as a whole, and a document that cannot be written leaves the one before."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from bench.json_file import write_json


class _Document(msgspec.Struct):
    figures: tuple[object, ...]


def test_a_document_takes_the_place_of_the_one_before_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "out" / "bench.json"
    for figures in ((1, 2.5), (3,)):
        write_json(path, _Document(figures))
        assert msgspec.json.decode(path.read_bytes()) == {"figures": list(figures)}
    assert list(path.parent.iterdir()) == [path]


def test_a_document_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    write_json(path, _Document((1,)))
    with pytest.raises(TypeError):
        write_json(path, _Document((object(),)))
    (tmp_path / "bench.json.0.new").mkdir()  # where the new one would be written first
    with pytest.raises(IsADirectoryError):
        write_json(path, _Document((2,)))
    assert msgspec.json.decode(path.read_bytes()) == {"figures": [1]}
