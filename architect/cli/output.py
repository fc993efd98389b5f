"""What people and programs read: one JSON document on stdout, or aligned tables; progress on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from architect.model.sizes import format_size

REASON_WIDTH = 60
ENDPOINTS_SHOWN = 3


class Output:
    """One command's output. `as_json`: documents instead of tables, and progress only where a person watches."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._shows_progress = not as_json or sys.stderr.isatty()
        self._last_line = ""

    def document(self, value: object) -> None:
        """One JSON document, on a line of its own."""
        sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
        sys.stdout.flush()

    def line(self, text: str) -> None:
        """One line for people."""
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def progress(self, text: str) -> None:
        """One line about work that goes on; not twice the same."""
        if self._shows_progress and text != self._last_line:
            self._last_line = text
            sys.stderr.write(text + "\n")
            sys.stderr.flush()

    def note(self, text: str) -> None:
        """One line about what is not as was asked for, or goes on without us: for programs' logs, too."""
        sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Aligned columns; the head alone if there is nothing."""
        widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
        for row in (head, *rows):
            self.line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def vm_row(vm: dict[str, Any]) -> list[str]:
    """A VM in `ps`."""
    has_ended = vm["state"] in ("exited", "stopped")
    is_over = has_ended or vm["state"] == "lost"
    state = vm["state"] + (f" ({vm['exit_code']})" if has_ended and vm["exit_code"] is not None else "")
    return [
        vm["name"],
        state,
        vm["host"],
        format_size(vm["memory_bytes"]),
        "" if is_over else _endpoints(vm["endpoints"]),
        _shortened(vm["image"]),
        _shortened(vm["reason"]),
    ]


VM_HEAD = ("NAME", "STATE", "HOST", "MEMORY", "ENDPOINTS", "IMAGE", "REASON")
HOST_HEAD = ("NAME", "PROVIDER", "REGION", "STATE", "VMS", "MEMORY", "FREE", "NOTICE")


def host_row(host: dict[str, Any]) -> list[str]:
    """A host in `host ls`."""
    is_lost = host["state"] == "lost"
    notice = None if is_lost else host["notice"]
    return [
        host["name"],
        host["provider"],
        host["region"],
        host["state"],
        str(host["vms"]),
        format_size(host["memory_bytes"]),
        "-" if is_lost else format_size(host["memory_free_bytes"]),
        f"{notice['kind']} until {notice['deadline']}" if notice else "",
    ]


def endpoint_text(endpoint: dict[str, Any]) -> str:
    """`203.0.113.1:8080/tcp->80`."""
    return f"{endpoint['address']}:{endpoint['port']}/{endpoint['protocol']}->{endpoint['guest_port']}"


def _endpoints(endpoints: list[dict[str, Any]]) -> str:
    """The first few; `inspect` has them all."""
    shown = [endpoint_text(endpoint) for endpoint in endpoints[:ENDPOINTS_SHOWN]]
    more = len(endpoints) - len(shown)
    return ", ".join([*shown, f"{more} more"] if more else shown)


def event_line(event: dict[str, Any]) -> str:
    """An event for people."""
    about = " ".join(word for word in (event["vm"], f"on {event['host']}" if event["host"] else "") if word)
    parts = [event["time"], event["kind"], about, event["message"]]
    return "  ".join(part for part in parts if part)


def fields(value: dict[str, Any]) -> list[str]:
    """A document as `key: value` lines, nested ones indented."""
    width = max((len(key) for key in value), default=0) + 1
    shown: list[str] = []
    for key, item in value.items():
        if key == "endpoints":
            item = ", ".join(endpoint_text(endpoint) for endpoint in item)
        elif key.endswith("_bytes") and isinstance(item, int):
            item = format_size(item)
        elif isinstance(item, (dict, list)):
            item = json.dumps(item) if item else ""
        shown.append(f"{key + ':':<{width}} {'' if item is None else item}".rstrip())
    return shown


def _shortened(text: str) -> str:
    return text if len(text) <= REASON_WIDTH else text[: REASON_WIDTH - 1] + "…"


def pause_text(move: dict[str, Any]) -> str:
    """For how long a move stopped its VM, as far as that is known."""
    return "pause not known" if move["downtime_ms"] is None else f"pause {move['downtime_ms']:.0f} ms"
