"""The REST interface over a whole control plane: status codes, bodies, streams, and what it documents."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from architect.errors import IncompatibleError
from architect.model.handover_state import HandoverState
from architect.model.ids import HostName
from architect.rest.app import rest_app
from architect.wire.agent_messages import ReadLog
from tests.control.rig import Rig, rig, simulate

Answer = tuple[int, list[Any]]


class Browser:
    """Asks the application in this process, without a socket."""

    def __init__(self, one: Rig) -> None:
        self._app = rest_app(one.control)

    async def ask(self, method: str, path: str, body: Any = None, *, leave: asyncio.Event | None = None) -> Answer:
        """The status and the JSON lines of the answer; the client goes away when `leave` is set."""
        path, _, query = path.partition("?")
        raw = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = [{"type": "http.request", "body": raw, "more_body": False}]
        status, answer = 0, b""

        async def receive() -> dict[str, Any]:
            if sent:
                return sent.pop()
            await (leave or asyncio.Event()).wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            nonlocal status, answer
            status = message.get("status", status)
            answer += message.get("body", b"")

        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(b"content-type", b"application/json")],
            "http_version": "1.1",
            "scheme": "http",
        }
        await self._app(scope, receive, send)
        return status, [json.loads(line) for line in answer.splitlines() if line]


def against(tmp_path: Path, check: Callable[[Rig, Browser], Awaitable[None]]) -> None:
    """Run a check on a fabric of two hosts with a VM `web` on the first."""

    async def test() -> None:
        async with rig(tmp_path, "aws-1", "gcp-1") as one:
            await one.run("web", host="aws-1")
            await check(one, Browser(one))

    simulate(test())


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/v1/vms/nope", None, 404, "not-found"),
        ("GET", "/nope", None, 404, "not-found"),
        ("PUT", "/v1/vms", None, 405, "usage"),
        ("POST", "/v1/vms", b"not json", 400, "usage"),
        ("POST", "/v1/vms", {"image": "oci:x", "unknown": 1}, 400, "usage"),
        ("POST", "/v1/vms", {"image": "oci:x", "name": "web"}, 409, "conflict"),
        ("POST", "/v1/vms", {"image": "oci:x", "memory_bytes": 1 << 45}, 507, "capacity"),
        ("POST", "/v1/vms", {"image": "oci:x", "publish": [{"public_port": 0, "guest_port": 1}]}, 400, "usage"),
        ("POST", "/v1/vms/web/migrate", {"to": "nope"}, 404, "not-found"),
        ("POST", "/v1/vms/web/migrate", {"to": "aws-1"}, 409, "conflict"),
        ("POST", "/v1/vms/web/migrate", {"to": "gcp-1", "mode": "teleport"}, 400, "usage"),
        ("POST", "/v1/vms/web/migrate", {"to": "gcp-1", "bandwidth_bytes_s": -1}, 400, "usage"),
        ("POST", "/v1/vms/web/migrate", {"to": "gcp-1", "bandwidth_bytes_s": 1000}, 400, "usage"),
        ("POST", "/v1/vms/web/migrate", {"to": "gcp-1", "compression": "lz4"}, 400, "usage"),
        ("POST", "/v1/vms/web/stop", {"grace_s": -1}, 400, "usage"),
        ("POST", "/v1/vms/web/exec", {"args": []}, 400, "usage"),
        ("POST", "/v1/exec/nope/input", b"x", 404, "not-found"),
        ("DELETE", "/v1/vms/web", None, 409, "conflict"),
        ("DELETE", "/v1/hosts/aws-1", None, 409, "conflict"),
        ("GET", "/v1/vms/web/logs?offset=-1", None, 400, "usage"),
        ("GET", "/v1/migrations/nope", None, 404, "not-found"),
    ],
)
def test_refusals_have_their_status_and_say_three_things(
    tmp_path: Path, method: str, path: str, body: Any, status: int, code: str
) -> None:
    async def check(_: Rig, browser: Browser) -> None:
        got, answer = await browser.ask(method, path, body)
        assert (got, answer[0]["error"]["code"]) == (status, code)
        assert set(answer[0]["error"]) == {"code", "thing", "cause", "next_step"} and all(answer[0]["error"].values())

    against(tmp_path, check)


def test_long_work_streams_progress_and_ends_in_its_result(tmp_path: Path) -> None:
    async def check(_: Rig, browser: Browser) -> None:
        status, lines = await browser.ask("POST", "/v1/vms", {"image": "oci:/x", "name": "job"})
        assert status == 200 and all("progress" in line for line in lines[:-1])
        assert lines[-1]["result"]["state"] == "running"
        status, lines = await browser.ask("POST", "/v1/vms/job/migrate", {"to": "aws-1"})
        assert (status, lines[-1]["result"]["outcome"]) == (200, "done")
        assert lines[0]["migration"] == lines[-1]["result"]["id"]
        assert (await browser.ask("GET", f"/v1/migrations/{lines[0]['migration']}"))[1] == [lines[-1]["result"]]
        for of in ("job", lines[0]["migration"]):
            assert (await browser.ask("GET", f"/v1/migrations?of={of}"))[1] == [[lines[-1]["result"]]]
        assert (await browser.ask("GET", "/v1/migrations?of=web"))[1] == [[]]
        status, lines = await browser.ask("POST", "/v1/hosts/aws-1/drain", {})
        assert lines[-1] == {"result": {"host": "aws-1", "moved": ["job", "web"], "left": []}}

    against(tmp_path, check)


def test_work_that_fails_later_ends_its_stream_in_the_error(tmp_path: Path) -> None:
    async def check(one: Rig, browser: Browser) -> None:
        one.world.refuse_move[HostName("gcp-1")] = IncompatibleError("host gcp-1", "has another TSC", "choose another")
        status, lines = await browser.ask("POST", "/v1/vms/web/migrate", {"to": "gcp-1"})
        assert (status, lines[-1]["error"]["code"]) == (200, "incompatible")

    against(tmp_path, check)


def test_a_client_that_leaves_stops_no_move_and_leaves_no_stream_behind(tmp_path: Path) -> None:
    async def check(one: Rig, browser: Browser) -> None:
        one.world.hold[HandoverState.SWITCHOVER] = gate = asyncio.Event()
        leave = asyncio.Event()
        asking = asyncio.create_task(browser.ask("POST", "/v1/vms/web/migrate", {"to": "gcp-1"}, leave=leave))
        await asyncio.sleep(1)
        leave.set()
        await asking
        gate.set()
        await one.until(lambda: one.view("web").host == "gcp-1")

    against(tmp_path, check)


def test_a_reader_of_a_quiet_log_that_leaves_ends_the_hosts_stream(tmp_path: Path) -> None:
    async def check(one: Rig, browser: Browser) -> None:
        leave = asyncio.Event()
        asking = asyncio.create_task(browser.ask("GET", "/v1/vms/web/logs?follow=true&offset=15", leave=leave))
        await one.until(lambda: any(isinstance(request, ReadLog) for request in one.world.requests))
        await asyncio.sleep(1)
        agent = one.world.agents[HostName("aws-1")]
        assert agent.reader_count == 1
        leave.set()
        status, lines = await asking
        assert (status, lines) == (200, [])
        await one.until(lambda: agent.reader_count == 0)

    against(tmp_path, check)


def test_every_route_is_documented_with_its_answers(tmp_path: Path) -> None:
    async def check(_: Rig, browser: Browser) -> None:
        _status, (document,) = await browser.ask("GET", "/openapi.json")
        routes = {(path, method) for path, methods in document["paths"].items() for method in methods}
        assert ("/v1/vms", "post") in routes and ("/v1/hosts/{host}/drain", "post") in routes and len(routes) == 17
        for path, methods in document["paths"].items():
            for method, route in methods.items():
                assert route["summary"], (path, method)
                assert "$ref" not in json.dumps(route["responses"].get("4XX", {}))

    against(tmp_path, check)
