"""Scheduled Events of Azure's instance metadata service.

Every request shows `Metadata: true` and an `api-version` (400 without). The list is of the whole availability set: it holds events
of other machines too (`neighbours`), and only those with our name in `Resources` are ours. A POST of StartRequests says that an
event may proceed now; the machine is then taken early.
Source: Azure documentation, "Scheduled Events for Linux VMs".
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import msgspec
from aiohttp import web

from architect.clouds.local.notice_board import NoticeBoard
from architect.model.times import parse_rfc3339

API_VERSIONS = ("2019-01-01", "2019-04-01", "2019-08-01", "2020-07-01")
EVENTS_PATH = "/metadata/scheduledevents"


class _StartRequest(msgspec.Struct, frozen=True):
    EventId: str


class _StartRequests(msgspec.Struct, frozen=True):
    StartRequests: list[_StartRequest]


_START_REQUESTS_DECODER = msgspec.json.Decoder(_StartRequests)


class AzureMetadata:
    """One instance's service. `neighbours` are events of other machines, shown in the list as they are."""

    def __init__(self, board: NoticeBoard, neighbours: tuple[dict[str, Any], ...] = ()) -> None:
        self._board = board
        self._neighbours = neighbours
        self._started: set[str] = set()

    def application(self) -> web.Application:
        """What to serve at port 80."""
        application = web.Application()
        application.router.add_get(EVENTS_PATH, _guarded(self._list))
        application.router.add_post(EVENTS_PATH, _guarded(self._start))
        application.router.add_get("/metadata/instance/compute/name", _guarded(self._name))
        return application

    async def _list(self, request: web.Request) -> web.Response:
        events = list(self._neighbours)
        notice = self._board.notice
        if notice is not None:
            is_started = notice.id in self._started
            events.append(
                {
                    "EventId": notice.id,
                    "EventType": "Preempt",
                    "ResourceType": "VirtualMachine",
                    "Resources": [self._board.instance],
                    "EventStatus": "Started" if is_started else "Scheduled",
                    "NotBefore": "" if is_started else _rfc1123(notice.deadline),
                    "Description": "",
                    "EventSource": "Platform",
                    "DurationInSeconds": -1,
                }
            )
        return web.json_response({"DocumentIncarnation": self._board.incarnation + len(self._started), "Events": events})

    async def _start(self, request: web.Request) -> web.Response:
        try:
            body = _START_REQUESTS_DECODER.decode(await request.read())
        except msgspec.MsgspecError:
            return web.Response(status=400, text="StartRequests")
        wanted = {item.EventId for item in body.StartRequests}
        notice = self._board.notice
        if notice is None or notice.id not in wanted:
            return web.Response(status=400, text="no such event")
        if notice.id not in self._started:
            self._started.add(notice.id)
            self._board.acknowledged(notice.id)
        return web.Response()

    async def _name(self, request: web.Request) -> web.Response:
        return web.Response(text=self._board.instance)


def _guarded(handler: Callable[[web.Request], Awaitable[web.Response]]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def check(request: web.Request) -> web.Response:
        if request.headers.get("Metadata", "").lower() != "true" or "X-Forwarded-For" in request.headers:
            return web.json_response({"error": "Bad request. Required metadata header not specified"}, status=400)
        if request.query.get("api-version") not in API_VERSIONS:
            versions = {"error": "Bad request. api-version is invalid or was not specified", "newest-versions": API_VERSIONS}
            return web.json_response(versions, status=400)
        return await handler(request)

    return check


def _rfc1123(deadline: str) -> str:
    """Whole seconds, rounded down: never later than the truth."""
    return format_datetime(datetime.fromtimestamp(int(parse_rfc3339(deadline)), UTC), usegmt=True)
