"""The instance metadata service of AWS, version 2, as far as a spot instance needs it.

A token is put first and shown with every request (401 without a valid one); `spot/instance-action` is 404 until a notice is
posted. Version 1 (no token) is refused, as on instances launched with `HttpTokens=required`.
Source: AWS EC2 user guide, "Use IMDSv2" and "Spot Instance interruption notices".
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from aiohttp import web

from architect.clouds.local.notice_board import NoticeBoard
from architect.model.times import parse_rfc3339
from architect.runtime.clock import Clock

TOKEN_TTL_S_MAX = 21600
TOKENS_MAX = 1000
TTL_HEADER = "X-aws-ec2-metadata-token-ttl-seconds"
TOKEN_HEADER = "X-aws-ec2-metadata-token"


class AwsMetadata:
    """One instance's service."""

    def __init__(self, board: NoticeBoard, clock: Clock) -> None:
        self._board = board
        self._clock = clock
        self._expiry_by_token: dict[str, float] = {}

    def application(self) -> web.Application:
        """What to serve at port 80."""
        application = web.Application()
        application.router.add_put("/latest/api/token", self._put_token)
        self._get(application, "/latest/meta-data/spot/instance-action", self._instance_action)
        self._get(application, "/latest/meta-data/spot/termination-time", self._termination_time)
        self._get(application, "/latest/meta-data/instance-id", self._text(lambda: self._board.instance))
        self._get(application, "/latest/meta-data/placement/region", self._text(lambda: self._board.region))
        return application

    def forget_tokens(self) -> None:
        """Every token becomes invalid, as after a restart of the service."""
        self._expiry_by_token.clear()

    def _get(self, application: web.Application, path: str, handler: Callable[[], Awaitable[web.Response]]) -> None:
        async def guarded(request: web.Request) -> web.Response:
            expiry_s = self._expiry_by_token.get(request.headers.get(TOKEN_HEADER, ""), 0.0)
            if expiry_s <= self._clock.monotonic_s():
                return web.Response(status=401, text="Unauthorized")
            return await handler()

        application.router.add_get(path, guarded)

    async def _put_token(self, request: web.Request) -> web.Response:
        try:
            ttl_s = int(request.headers[TTL_HEADER])
        except (KeyError, ValueError):
            return web.Response(status=400, text="Bad Request")
        if not 1 <= ttl_s <= TOKEN_TTL_S_MAX or "X-Forwarded-For" in request.headers:
            return web.Response(status=400 if "X-Forwarded-For" not in request.headers else 403)
        now_s = self._clock.monotonic_s()
        self._expiry_by_token = {token: end_s for token, end_s in self._expiry_by_token.items() if end_s > now_s}
        if len(self._expiry_by_token) >= TOKENS_MAX:
            return web.Response(status=503)
        token = secrets.token_urlsafe(40)
        self._expiry_by_token[token] = now_s + ttl_s
        return web.Response(text=token, headers={TTL_HEADER: str(ttl_s)})

    async def _instance_action(self) -> web.Response:
        if self._board.notice is None:
            return web.Response(status=404, text="Not Found")
        return web.json_response({"action": "terminate", "time": self._time(self._board.notice.deadline)})

    async def _termination_time(self) -> web.Response:
        if self._board.notice is None:
            return web.Response(status=404, text="Not Found")
        return web.Response(text=self._time(self._board.notice.deadline))

    @staticmethod
    def _text(value: Callable[[], str]) -> Callable[[], Awaitable[web.Response]]:
        async def answer() -> web.Response:
            return web.Response(text=value())

        return answer

    @staticmethod
    def _time(deadline: str) -> str:
        """Whole seconds, rounded down: never later than the truth."""
        return datetime.fromtimestamp(int(parse_rfc3339(deadline)), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
