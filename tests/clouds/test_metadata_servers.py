"""The local metadata servers hold to their clouds' protocols, refusals included."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import aiohttp
import msgspec

from architect.clouds.aws.imds import ImdsReader
from architect.clouds.local.metadata_aws import AwsMetadata
from architect.clouds.local.metadata_azure import AzureMetadata
from architect.clouds.local.notice_board import NoticeBoard
from architect.runtime.clock import SystemClock
from tests.clouds.metadata_fixture import INSTANCE, board, first_of, posted, serving, serving_application, watcher

GCP = "/computeMetadata/v1/instance/preempted"
AZURE = "/metadata/scheduledevents?api-version=2020-07-01"
AWS = "/latest/meta-data/spot/instance-action"


async def ask(method: str, url: str, headers: Mapping[str, str] = {}, body: bytes = b"") -> tuple[int, str, Mapping[str, str]]:
    """One request: status, body, headers."""
    async with aiohttp.ClientSession() as session:
        async with session.request(method, url, headers=headers, data=body) as response:
            return response.status, await response.text(), response.headers


def test_aws_refuses_who_shows_no_token_and_who_shows_another_ones() -> None:
    async def test() -> None:
        async with serving("aws", board()) as url:
            assert (await ask("GET", url + AWS))[0] == 401
            assert (await ask("GET", url + AWS, {"X-aws-ec2-metadata-token": "guessed"}))[0] == 401
            assert (await ask("PUT", url + "/latest/api/token"))[0] == 400
            assert (await ask("PUT", url + "/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "21601"}))[0] == 400
            forwarded = {"X-aws-ec2-metadata-token-ttl-seconds": "60", "X-Forwarded-For": "203.0.113.1"}
            assert (await ask("PUT", url + "/latest/api/token", forwarded))[0] == 403
            assert (await ask("GET", url + "/latest/api/token"))[0] == 405

    asyncio.run(test())


def test_aws_shows_the_notice_in_whole_seconds_that_are_never_late() -> None:
    async def test() -> None:
        notices = board()
        async with serving("aws", notices) as url:
            _, token, _ = await ask("PUT", url + "/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"})
            headers = {"X-aws-ec2-metadata-token": token}
            assert (await ask("GET", url + AWS, headers))[0] == 404
            notice = posted()
            notices.post(notice)
            status, text, _ = await ask("GET", url + AWS, headers)
            assert status == 200
            assert msgspec.json.decode(text) == {"action": "terminate", "time": notice.deadline[:19] + "Z"}

    asyncio.run(test())


def test_aws_forgets_tokens_and_a_reader_takes_a_new_one_at_once() -> None:
    async def test() -> None:
        notices = board()
        server = AwsMetadata(notices, SystemClock())
        async with serving_application(server.application()) as url:
            reader = ImdsReader(url, SystemClock())
            try:
                assert (await reader.read()).sighting is None
                server.forget_tokens()
                notices.post(posted())
                assert (await reader.read()).sighting is not None, "no look fails for want of a token"
            finally:
                await reader.close()

    asyncio.run(test())


def test_gcp_refuses_who_does_not_name_its_flavor_and_who_is_forwarded() -> None:
    async def test() -> None:
        async with serving("gcp", board()) as url:
            assert (await ask("GET", url + GCP))[0] == 403
            assert (await ask("GET", url + GCP, {"Metadata-Flavor": "Google", "X-Forwarded-For": "1.2.3.4"}))[0] == 403
            status, text, headers = await ask("GET", url + GCP, {"Metadata-Flavor": "Google"})
            assert (status, text, headers["Metadata-Flavor"]) == (200, "FALSE", "Google") and headers["ETag"]

    asyncio.run(test())


def test_gcp_hangs_until_the_value_changes_or_the_time_is_over() -> None:
    async def test() -> None:
        notices = board()
        flavor = {"Metadata-Flavor": "Google"}
        async with serving("gcp", notices) as url:
            etag = (await ask("GET", url + GCP, flavor))[2]["ETag"]
            hanging = asyncio.ensure_future(ask("GET", f"{url}{GCP}?wait_for_change=true&last_etag={etag}&timeout_sec=20", flavor))
            await asyncio.wait([hanging], timeout=0.2)
            assert not hanging.done()
            notices.post(posted())
            status, text, headers = await hanging
            assert (status, text) == (200, "TRUE") and headers["ETag"] != etag
            assert (await ask("GET", f"{url}{GCP}?wait_for_change=true&last_etag={etag}&timeout_sec=20", flavor))[1] == "TRUE"
            assert (await ask("GET", f"{url}{GCP}?wait_for_change=true&timeout_sec=0", flavor))[1] == "TRUE"
            assert (await ask("GET", f"{url}{GCP}?wait_for_change=true&timeout_sec=soon", flavor))[0] == 400

    asyncio.run(test())


def test_azure_refuses_who_shows_no_header_and_no_version() -> None:
    async def test() -> None:
        async with serving("azure", board()) as url:
            assert (await ask("GET", url + AZURE))[0] == 400
            assert (await ask("GET", url + "/metadata/scheduledevents", {"Metadata": "true"}))[0] == 400
            assert (await ask("GET", url + "/metadata/scheduledevents?api-version=1", {"Metadata": "true"}))[0] == 400
            status, text, _ = await ask("GET", url + AZURE, {"Metadata": "true"})
            assert status == 200 and msgspec.json.decode(text) == {"DocumentIncarnation": 1, "Events": []}

    asyncio.run(test())


def test_azure_counts_incarnations_and_starts_an_event_when_asked_to() -> None:
    async def test() -> None:
        acknowledged: list[str] = []
        notices = NoticeBoard(INSTANCE, "test-1", acknowledged=acknowledged.append)
        async with serving("azure", notices) as url:
            header = {"Metadata": "true"}
            notices.post(posted("event-1"))
            scheduled = await events(url)
            assert scheduled["DocumentIncarnation"] == 2
            assert scheduled["Events"][0]["EventStatus"] == "Scheduled" and scheduled["Events"][0]["NotBefore"].endswith(" GMT")
            start = b'{"StartRequests": [{"EventId": "event-1"}]}'
            assert (await ask("POST", url + AZURE, header, b'{"StartRequests": "x"}'))[0] == 400
            assert (await ask("POST", url + AZURE, header, start.replace(b"-1", b"-2")))[0] == 400
            assert (await ask("POST", url + AZURE, header, start))[0] == 200
            assert (await ask("POST", url + AZURE, header, start))[0] == 200
            assert acknowledged == ["event-1"]
            started = await events(url)
            assert started["DocumentIncarnation"] == 3
            assert (started["Events"][0]["EventStatus"], started["Events"][0]["NotBefore"]) == ("Started", "")

    asyncio.run(test())


def test_azure_events_of_neighbours_are_not_ours() -> None:
    async def test() -> None:
        neighbours: tuple[dict[str, Any], ...] = tuple(
            {"EventId": f"n-{number}", "EventType": kind, "ResourceType": "VirtualMachine", "Resources": names,
             "EventStatus": "Scheduled", "NotBefore": "Mon, 19 Sep 2050 18:29:47 GMT"}
            for number, (kind, names) in enumerate([("Preempt", ["vm-8", "vm-77"]), ("Freeze", [INSTANCE]), ("Preempt", [])])
        )  # fmt: skip
        notices = board()
        async with serving_application(AzureMetadata(notices, neighbours).application()) as url:
            assert await first_of(watcher("azure", url)) is None
            notices.post(posted("ours"))
            notice = await first_of(watcher("azure", url))
            assert notice is not None and notice.id == "ours"

    asyncio.run(test())


async def events(url: str) -> Any:
    """The document."""
    return msgspec.json.decode((await ask("GET", url + AZURE, {"Metadata": "true"}))[1])
