"""A registry on the loopback that serves an OCI layout by plain HTTP, for tests of references without a transport."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec

REF_NAME = "org.opencontainers.image.ref.name"


class _Handler(http.server.BaseHTTPRequestHandler):
    layout: Path
    requests: list[str]

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 the base class's name
        pass

    def _answer(self, with_body: bool) -> None:
        self.requests.append(self.path)
        status, kind, body = self._find()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def _find(self) -> tuple[int, str, bytes]:
        parts = self.path.strip("/").split("/")
        if self.path == "/v2/":
            return 200, "application/json", b"{}"
        if parts[1] == "private":
            return 401, "application/json", b'{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}'
        manifests = msgspec.json.decode((self.layout / "index.json").read_bytes())["manifests"]
        kinds = {m["digest"]: m["mediaType"] for m in manifests} | {m["annotations"][REF_NAME]: m["mediaType"] for m in manifests}
        digests = {m["annotations"][REF_NAME]: m["digest"] for m in manifests}
        digest = digests.get(parts[-1], parts[-1])
        blob = self.layout / "blobs" / "sha256" / digest.removeprefix("sha256:")
        if digest.startswith("sha256:") and blob.is_file():
            return 200, kinds.get(parts[-1], "application/vnd.oci.image.manifest.v1+json"), blob.read_bytes()
        return 404, "application/json", b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}'


class Registry:
    """A running registry: its `host`, as references write it, and the paths that were asked for."""

    def __init__(self, host: str, requests: list[str]) -> None:
        self.host = host
        self.requests = requests


@contextlib.contextmanager
def registry(layout: Path) -> Iterator[Registry]:
    """Serve the images of `layout`; every repository but `private` has them all."""
    requests: list[str] = []
    handler = type("Handler", (_Handler,), {"layout": layout, "requests": requests})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield Registry(f"127.0.0.1:{server.server_port}", requests)
        finally:
            server.shutdown()
            thread.join()
