"""The metadata server of Google Cloud, as far as a spot instance needs it.

Every request shows `Metadata-Flavor: Google` (403 without). With `wait_for_change=true` a GET hangs until the value is another one
than that of `last_etag`, or `timeout_sec` is over. `instance/preempted` is FALSE, then TRUE; no deadline is told.
Source: Compute Engine documentation, "Query VM metadata" and "Wait for updates".
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Awaitable, Callable

from aiohttp import web

from architect.clouds.local.notice_board import NoticeBoard

WAIT_S_MAX = 3600.0
_FLAVOR = {"Metadata-Flavor": "Google", "Server": "Metadata Server for VM"}


class GcpMetadata:
    """One instance's service."""

    def __init__(self, board: NoticeBoard) -> None:
        self._board = board

    def application(self) -> web.Application:
        """What to serve at port 80."""
        application = web.Application(middlewares=[_guard])
        root = "/computeMetadata/v1/instance"
        application.router.add_get(f"{root}/preempted", self._preempted)
        application.router.add_get(f"{root}/name", self._name)
        application.router.add_get(f"{root}/zone", self._zone)
        application.router.add_get(f"{root}/maintenance-event", self._maintenance)
        return application

    @property
    def etag(self) -> str:
        """Of the value that stands now."""
        return hashlib.sha256(f"{self._board.instance} {self._board.incarnation}".encode()).hexdigest()[:16]

    async def _preempted(self, request: web.Request) -> web.Response:
        query = request.query
        try:
            timeout_s = float(query.get("timeout_sec", WAIT_S_MAX))
        except ValueError:
            return web.Response(status=400, text="timeout_sec")
        if not math.isfinite(timeout_s) or timeout_s < 0:
            return web.Response(status=400, text="timeout_sec")
        is_current = query.get("last_etag") in (None, self.etag)
        if query.get("wait_for_change", "").lower() == "true" and is_current:
            await self._board.wait_change(min(timeout_s, WAIT_S_MAX))
        text = "FALSE" if self._board.notice is None else "TRUE"
        return web.Response(text=text, content_type="application/text", headers={"ETag": self.etag})

    async def _name(self, request: web.Request) -> web.Response:
        return web.Response(text=self._board.instance, content_type="application/text")

    async def _zone(self, request: web.Request) -> web.Response:
        return web.Response(text=f"projects/0/zones/{self._board.region}-a", content_type="application/text")

    async def _maintenance(self, request: web.Request) -> web.Response:
        return web.Response(text="NONE", content_type="application/text")


@web.middleware
async def _guard(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
    if request.headers.get("Metadata-Flavor") != "Google" or "X-Forwarded-For" in request.headers:
        return web.Response(status=403, text="Missing required header: Metadata-Flavor", headers=_FLAVOR)
    response = await handler(request)
    response.headers.update(_FLAVOR)
    return response
