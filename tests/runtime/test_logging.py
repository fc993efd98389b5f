"""A log line is one line, and a log does not grow without bound."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from architect.runtime.logging import LineFormatter, last_line, trim_log


def record(text: str, **extra: object) -> logging.LogRecord:
    """An event."""
    made = logging.LogRecord("architect.x", logging.WARNING, __file__, 1, text, None, None)
    made.__dict__.update(extra)
    return made


def test_an_event_is_one_line_with_its_fields() -> None:
    line = LineFormatter().format(record("first\nsecond", fields={"vm": "vm-1", "ms": 3}))
    assert line.endswith("Z warning architect.x: first | second vm=vm-1 ms=3")
    assert "\n" not in line


def test_a_traceback_is_one_line_too() -> None:
    try:
        raise ValueError("torn")
    except ValueError:
        line = LineFormatter().format(record("failed", exc_info=sys.exc_info()))
    assert "\n" not in line and "ValueError: torn" in line


def test_a_log_is_cut_once_it_is_too_long_and_its_end_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    with path.open("ab") as writer:
        writer.write(b"a" * 90 + b"b" * 20)
        writer.flush()
        assert not trim_log(path, 110, 20)
        writer.write(b"c")
        writer.flush()
        assert trim_log(path, 110, 20)
        assert (tmp_path / "x.log.1").read_bytes() == b"b" * 19 + b"c"
        writer.write(b"on")
        writer.flush()
    assert path.read_bytes() == b"on"
    assert not trim_log(tmp_path / "none.log")


def test_the_last_line_is_the_last_that_says_something(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    assert last_line(path) == ""
    path.write_bytes(b"one\ntwo \xff\n\n  \n")
    assert last_line(path) == "two �"
