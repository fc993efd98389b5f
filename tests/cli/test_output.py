"""What people read: rows that stay readable."""

from __future__ import annotations

from typing import Any

import pytest

from architect.cli.output import Output, endpoint_text, vm_row


def vm(ports: int) -> dict[str, Any]:
    """A running VM as the REST interface shows it."""
    endpoints = [{"address": "203.0.113.1", "port": 8000 + n, "protocol": "tcp", "guest_port": 80 + n} for n in range(ports)]
    return {
        "name": "web", "state": "running", "exit_code": None, "host": "aws-1", "memory_bytes": 1 << 28, "endpoints": endpoints,
        "image": "oci:web", "reason": "",
    }  # fmt: skip


@pytest.mark.parametrize(("ports", "more"), [(0, ""), (1, ""), (3, ""), (4, ", 1 more"), (60, ", 57 more")])
def test_a_row_shows_the_first_three_endpoints_and_how_many_more_there_are(ports: int, more: str) -> None:
    shown = vm(ports)
    assert vm_row(shown)[4] == ", ".join(endpoint_text(endpoint) for endpoint in shown["endpoints"][:3]) + more


@pytest.mark.parametrize("as_json", [False, True])
def test_a_note_is_for_programs_logs_too(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    Output(as_json=as_json).note("the move goes on")
    assert capsys.readouterr() == ("", "the move goes on\n")
