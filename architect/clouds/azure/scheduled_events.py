"""Notices of Azure, by the Scheduled Events of its instance metadata service.

The list holds the events of the whole availability set; ours name our instance in `Resources`. `NotBefore` is the earliest time,
in RFC 1123, empty once the event has started. The first request switches the service on and may take two minutes; after a day
without requests it is off again. To acknowledge is to POST StartRequests: Azure then takes the machine at once, and all others that
the event names, so it is done after the VMs have left only. Source: Azure documentation, "Scheduled Events for Linux VMs".
"""

from __future__ import annotations

from datetime import UTC
from email.utils import parsedate_to_datetime

import msgspec

from architect.clouds.metadata_http import MetadataConnection, Reply
from architect.clouds.notice_source import Reading, Sighting
from architect.model.notice import NoticeKind
from architect.model.times import parse_rfc3339

API_VERSION = "2020-07-01"
TIMEOUT_S = 5.0
FIRST_TIMEOUT_S = 125.0
EVENTS_MAX = 1000
_PATH = f"/metadata/scheduledevents?api-version={API_VERSION}"
_HEADERS = {"Metadata": "true"}
_KINDS = {
    "Preempt": NoticeKind.PREEMPTION,
    "Terminate": NoticeKind.PREEMPTION,
    "Redeploy": NoticeKind.MAINTENANCE,
    "Reboot": NoticeKind.MAINTENANCE,
}
"""What takes the machine's memory away. `Freeze` is a pause of some seconds that a VM survives where it is."""
_COMING_STATES = ("Scheduled", "Started")


class _Event(msgspec.Struct, frozen=True):
    EventId: str
    EventType: str
    Resources: list[str] = []
    EventStatus: str = "Scheduled"
    NotBefore: str = ""


class _Document(msgspec.Struct, frozen=True):
    DocumentIncarnation: int
    Events: list[_Event]


_DOCUMENT_DECODER = msgspec.json.Decoder(_Document)


class ScheduledEventsReader:
    """The NoticeReader for an Azure machine.

    :param instance: the machine's name, as `Resources` has it.
    """

    def __init__(self, url: str, instance: str, *, timeout_s: float = TIMEOUT_S, first_timeout_s: float = FIRST_TIMEOUT_S) -> None:
        self._connection = MetadataConnection("Azure scheduled events", url)
        self._instance = instance
        self._timeout_s = timeout_s
        self._first_timeout_s = first_timeout_s
        self._has_answered = False

    async def read(self) -> Reading:
        """As `NoticeReader.read`."""
        timeout_s = self._timeout_s if self._has_answered else self._first_timeout_s
        reply = await self._connection.request("GET", _PATH, headers=_HEADERS, timeout_s=timeout_s)
        if reply.status != 200:
            raise self._connection.unexpected(reply)
        events = self._events(reply)
        self._has_answered = True
        ours = [self._sighting(event) for event in events if self._is_ours(event)]
        return Reading(min(ours, key=_urgency, default=None), reply.date_s)

    async def acknowledge(self, notice_id: str) -> None:
        """As `NoticeReader.acknowledge`: let the event proceed now. An event that is over, or has started, needs nothing."""
        body = msgspec.json.encode({"StartRequests": [{"EventId": notice_id}]})
        reply = await self._connection.request("POST", _PATH, headers=_HEADERS, body=body, timeout_s=self._timeout_s)
        if 200 <= reply.status < 300:
            return
        listed = await self._connection.request("GET", _PATH, headers=_HEADERS, timeout_s=self._timeout_s)
        waits = listed.status != 200 or any(
            event.EventId == notice_id and event.EventStatus == "Scheduled" for event in self._events(listed)
        )
        if waits:
            raise self._connection.unexpected(reply)

    async def close(self) -> None:
        """As `NoticeReader.close`."""
        await self._connection.close()

    def _events(self, reply: Reply) -> list[_Event]:
        try:
            events = _DOCUMENT_DECODER.decode(reply.body).Events
        except msgspec.MsgspecError as error:
            raise self._connection.nonsense(f"events: {error}") from error
        if len(events) > EVENTS_MAX:
            raise self._connection.nonsense(f"{len(events)} events")
        return events

    def _is_ours(self, event: _Event) -> bool:
        return event.EventType in _KINDS and event.EventStatus in _COMING_STATES and self._instance in event.Resources

    def _sighting(self, event: _Event) -> Sighting:
        return Sighting(event.EventId[:128], _KINDS[event.EventType], self._deadline_s(event.NotBefore), assumed_s=0.0)

    def _deadline_s(self, text: str) -> float | None:
        """Azure writes RFC 1123; newer versions were seen to write ISO 8601."""
        if not text:
            return None
        try:
            return parsedate_to_datetime(text).replace(tzinfo=UTC).timestamp() if "," in text else parse_rfc3339(text)
        except (ValueError, TypeError, OverflowError) as error:
            raise self._connection.nonsense(f"NotBefore {text!r}") from error


def _urgency(sighting: Sighting) -> tuple[float, str]:
    """What comes first; what has started comes before all."""
    return (sighting.deadline_s if sighting.deadline_s is not None else 0.0, sighting.id)
