"""Preemption notices of Google Compute Engine, by its metadata server.

`instance/preempted` turns from FALSE to TRUE. A GET with `wait_for_change` hangs until it does, so we hear of it at once. No
deadline is told: the instance has 30 s at best, from the moment it turned TRUE. 503 means try again. Nothing is acknowledged.
Source: Compute Engine documentation, "Spot VMs" and "Wait for metadata updates".
"""

from __future__ import annotations

from urllib.parse import quote

from architect.clouds.metadata_http import MetadataConnection
from architect.clouds.notice_source import Reading, Sighting
from architect.model.notice import NoticeKind

NOTICE_S = 30.0
HANG_S = 10.0
TIMEOUT_S = 3.0
ETAG_CHARACTERS_MAX = 128
_PATH = "/computeMetadata/v1/instance/preempted"


class MetadataReader:
    """The NoticeReader for a Compute Engine instance.

    :param notice_s: how long the instance has from TRUE on (120 where it was made with a preemption notice duration).
    :param hang_s: how long one look may hang.
    :param timeout_s: how much longer an answer may take.
    """

    def __init__(self, url: str, *, notice_s: float = NOTICE_S, hang_s: float = HANG_S, timeout_s: float = TIMEOUT_S) -> None:
        self._connection = MetadataConnection("Google metadata server", url)
        self._notice_s = notice_s
        self._hang_s = hang_s
        self._timeout_s = timeout_s
        self._etag = ""
        self._notice_id = ""

    async def read(self) -> Reading:
        """As `NoticeReader.read`; hangs until the value is another one than at the last look."""
        path, timeout_s = _PATH, self._timeout_s
        if self._etag:
            path += f"?wait_for_change=true&last_etag={quote(self._etag, safe='')}&timeout_sec={self._hang_s:g}"
            timeout_s += self._hang_s
        self._etag = ""
        reply = await self._connection.request("GET", path, headers={"Metadata-Flavor": "Google"}, timeout_s=timeout_s)
        if reply.status != 200:
            raise self._connection.unexpected(reply)
        if reply.headers.get("metadata-flavor") != "Google":
            raise self._connection.nonsense("not a Google metadata server")
        value = reply.body[:16].strip().upper()
        if value not in (b"TRUE", b"FALSE"):
            raise self._connection.nonsense(f"preempted: {value!r}")
        self._etag = reply.headers.get("etag", "")[:ETAG_CHARACTERS_MAX]
        if value == b"FALSE":
            self._notice_id = ""
            return Reading(None, reply.date_s)
        # While it stays TRUE it is the same notice, whatever its etag: a new one would get 30 s of its own.
        self._notice_id = self._notice_id or f"gcp-preempted-{self._etag or 'unnamed'}"
        return Reading(Sighting(self._notice_id, NoticeKind.PREEMPTION, assumed_s=self._notice_s), reply.date_s)

    async def acknowledge(self, notice_id: str) -> None:
        """Google does not ask for it."""

    async def close(self) -> None:
        """As `NoticeReader.close`."""
        await self._connection.close()
