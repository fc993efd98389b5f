"""The REST interface from the client's side: JSON over HTTP over the control plane's unix socket, by the standard library only."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from architect.errors import (
    ArchitectError,
    HostError,
    NotFoundError,
    OutcomeUnknownError,
    PeerError,
    UnavailableError,
    remote_error,
)
from architect.runtime.socket_paths import short_socket_path

_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")


class StreamBrokenError(OutcomeUnknownError):
    """The connection ended before the stream's last line."""


class _UnixConnection(HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("architect")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        with short_socket_path(self._path) as address:
            self.sock.connect(address)


class Client:
    """The control plane of one state folder."""

    def __init__(self, state_dir: Path) -> None:
        self._socket = state_dir / "control.sock"
        self._thing = f"control plane at {self._socket}"

    def get(self, path: str, **query: object) -> Any:
        """The document at a path.

        Raises:
            ArchitectError: what the control plane reported.
            UnavailableError: it does not run, or went away.
        """
        return self._document("GET", path, None, query)

    def post(self, path: str, body: object, **query: object) -> Any:
        """The answer to a request with a JSON body. Raises: as `get`."""
        return self._document("POST", path, json.dumps(body).encode(), query)

    def post_bytes(self, path: str, data: bytes, **query: object) -> Any:
        """The answer to a request with a raw body. Raises: as `get`."""
        return self._document("POST", path, data, query)

    def delete(self, path: str, **query: object) -> Any:
        """The answer to a deletion. Raises: as `get`."""
        return self._document("DELETE", path, None, query)

    def stream(self, method: str, path: str, body: object = None, **query: object) -> Iterator[dict[str, Any]]:
        """The lines of a stream as they come; the last one has the key "result".

        A stream that ends without it is broken: http.client does not tell a connection that was cut off from one that ended.

        Raises:
            ArchitectError: what the control plane reported, at the start or at the end.
            StreamBrokenError: the connection ended in the middle.
        """
        with self._asked(method, path, None if body is None else json.dumps(body).encode(), query) as response:
            while line := self._line(response):
                if line == b"\n":
                    continue
                item = _decoded(line)
                if isinstance(error := item.get("error"), dict):
                    raise _reported(error)
                yield item
                if "result" in item:
                    return
        raise self._broken()

    def _document(self, method: str, path: str, body: bytes | None, query: dict[str, object]) -> Any:
        with self._asked(method, path, body, query) as response:
            try:
                return json.loads(response.read())
            except (OSError, HTTPException, ValueError) as error:
                raise self._broken() from error

    @contextlib.contextmanager
    def _asked(self, method: str, path: str, body: bytes | None, query: dict[str, object]) -> Iterator[HTTPResponse]:
        connection = _UnixConnection(self._socket)
        words = {name: _query_word(value) for name, value in query.items() if value is not None}
        target = path + (f"?{urlencode(words)}" if words else "")
        try:
            self._connect(connection)
            try:
                connection.request(method, target, body, {"Content-Type": "application/json"} if body is not None else {})
                response = connection.getresponse()
            except (OSError, HTTPException) as error:
                raise self._broken() from error
            if response.status >= 400:
                raise self._refusal(response)
            yield response
        finally:
            connection.close()

    def _connect(self, connection: _UnixConnection) -> None:
        try:
            connection.connect()
        except PermissionError as error:
            raise HostError(self._thing, "permission denied", "run this as the user who ran `architect up`") from error
        except OSError as error:
            raise UnavailableError(self._thing, "does not run", "run `architect up`, or give --state-dir") from error

    def _broken(self) -> StreamBrokenError:
        return StreamBrokenError(self._thing, "went away before its answer", "see whether it took effect")

    def _refusal(self, response: HTTPResponse) -> ArchitectError:
        try:
            error = _decoded(response.read())["error"]
        except (OSError, HTTPException, KeyError, PeerError):
            return PeerError(self._thing, f"answered {response.status}", "see that it is an Architect of this version")
        return _reported(error)

    def _line(self, response: HTTPResponse) -> bytes:
        try:
            line = response.readline()
        except (OSError, HTTPException, ValueError) as error:
            raise self._broken() from error
        if line and not line.endswith(b"\n"):
            raise self._broken()
        return line


def segment(kind: str, name: str) -> str:
    """A user's name as a part of a path.

    Raises:
        NotFoundError: nothing can have that name.
    """
    if _NAME.fullmatch(name) is None or name in (".", ".."):
        raise NotFoundError(f"{kind} {name!r}", "does not exist", f"see `architect {'host ls' if kind == 'host' else 'ps'}`")
    return name


def _query_word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _decoded(line: bytes) -> dict[str, Any]:
    try:
        item = json.loads(line)
    except ValueError as error:
        raise PeerError("control plane", "sent what is not JSON", "see that it is an Architect of this version") from error
    if not isinstance(item, dict):
        raise PeerError("control plane", "sent what is no JSON object", "see that it is an Architect of this version")
    return item


def _reported(error: dict[str, Any]) -> ArchitectError:
    words = [str(error.get(key, "")) for key in ("code", "thing", "cause", "next_step")]
    return remote_error(*words)
