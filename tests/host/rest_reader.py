"""The REST interface as tests read it: what they ask often, they ask without a command, which costs a Python each time."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import socket
import time
from pathlib import Path
from typing import Any

PATIENCE_S = 90.0
TIMEOUT_S = 20.0


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("control", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class RestReader:
    """The interface of the fabric in a state folder."""

    def __init__(self, state_dir: Path) -> None:
        self._socket = state_dir / "control.sock"

    def ask(self, method: str, path: str) -> tuple[int, bytes]:
        """Status and body of one request."""
        with contextlib.closing(_UnixConnection(self._socket)) as connection:
            connection.request(method, f"/v1/{path}")
            answer = connection.getresponse()
            return answer.status, answer.read()

    def read(self, path: str) -> Any:
        """A document, over a restart of the control plane; None where there is none."""
        answer = self._get(path)
        return None if answer is None else json.loads(answer)

    def read_lines(self, path: str) -> list[Any]:
        """The items of a stream, but for its end."""
        items = [json.loads(line) for line in (self._get(path) or b"").splitlines() if line.strip()]
        return [item for item in items if "result" not in item]

    def log(self, vm: str) -> str:
        """The VM's output so far."""
        return b"".join(base64.b64decode(part["data"]) for part in self.read_lines(f"vms/{vm}/logs") if "data" in part).decode()

    def _get(self, path: str) -> bytes | None:
        end_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                status, answer = self.ask("GET", path)
                return answer if status == 200 else None
            except (OSError, http.client.HTTPException):
                if time.monotonic() > end_s:
                    raise
                time.sleep(0.2)
