"""Logs: one line an event, `TIME LEVEL NAME: TEXT key=value …`, on stderr or in a file that cannot grow without bound.

Long-running processes log to stderr, which their supervisor points at a file that it trims (`trim_log`); what asserts, crashes or
libraries print lands there too. Fields are passed with `extra={"fields": {...}}`.
"""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path

LOG_BYTES_MAX = 8 << 20
KEPT_BYTES = 1 << 20


class LineFormatter(logging.Formatter):
    """One line a record, whatever is in it; a traceback's lines are joined by ` | `."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        text = record.getMessage()
        if record.exc_info:
            text += " | " + self.formatException(record.exc_info)
        fields = getattr(record, "fields", None)
        suffix = "".join(f" {name}={value}" for name, value in fields.items()) if isinstance(fields, dict) else ""
        return f"{time} {record.levelname.lower()} {record.name}: " + " | ".join(text.splitlines()) + suffix


def configure_logging(path: Path | None = None, level: int = logging.INFO) -> None:
    """Send this process's logs to stderr, or to a file that is rotated once at `LOG_BYTES_MAX`. Idempotent."""
    handler: logging.Handler
    if path is None:
        handler = logging.StreamHandler(sys.stderr)
    else:
        handler = RotatingFileHandler(path, maxBytes=LOG_BYTES_MAX, backupCount=1)
    handler.setFormatter(LineFormatter())
    logging.basicConfig(handlers=[handler], level=level, force=True)


def trim_log(path: Path, size_bytes_max: int = LOG_BYTES_MAX, kept_bytes: int = KEPT_BYTES) -> bool:
    """Empty a log that others append to, once it is too long; its end is kept as `NAME.1`. True if it was.

    The writers must have it open for appending; what they write between the copy and the cut is lost.
    """
    try:
        size_bytes = path.stat().st_size
        if size_bytes <= size_bytes_max:
            return False
        with path.open("r+b") as file:
            file.seek(size_bytes - kept_bytes)
            path.with_name(path.name + ".1").write_bytes(file.read())
            file.truncate(0)
    except FileNotFoundError:
        return False
    return True


def last_line(path: Path) -> str:
    """The last line of a log that says something, for an error's cause; "" if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
