"""Spot interruption notices of AWS EC2, by the instance metadata service, version 2.

A token is put first and shown with each look at `spot/instance-action`: 404 means no notice, 401 that the token has expired.
Rebalance recommendations are not notices. AWS advises a look every 5 s; we look every second, for the notice is two minutes at
best. Nothing is acknowledged. Source: EC2 user guide, "Spot Instance interruption notices", "Use IMDSv2".
"""

from __future__ import annotations

import msgspec

from architect.clouds.metadata_http import MetadataConnection, Reply
from architect.clouds.notice_source import Reading, Sighting
from architect.model.notice import NoticeKind
from architect.model.times import parse_rfc3339
from architect.runtime.clock import Clock

TIMEOUT_S = 2.0
TOKEN_TTL_S = 21600
TOKEN_RENEWAL_S = 600.0
TOKEN_CHARACTERS_MAX = 4096
_PATH = "/latest/meta-data/spot/instance-action"


class _InstanceAction(msgspec.Struct, frozen=True):
    action: str
    time: str


_INSTANCE_ACTION_DECODER = msgspec.json.Decoder(_InstanceAction)


class ImdsReader:
    """The NoticeReader for an EC2 instance."""

    def __init__(self, url: str, clock: Clock, *, timeout_s: float = TIMEOUT_S) -> None:
        self._connection = MetadataConnection("AWS metadata service", url)
        self._clock = clock
        self._timeout_s = timeout_s
        self._token = ""
        self._token_end_s = 0.0

    async def read(self) -> Reading:
        """As `NoticeReader.read`."""
        if self._clock.monotonic_s() >= self._token_end_s - TOKEN_RENEWAL_S:
            await self._renew_token()
        reply = await self._look()
        if reply.status == 401:
            await self._renew_token()
            reply = await self._look()
        if reply.status == 404:
            return Reading(None, reply.date_s)
        if reply.status != 200:
            self._token_end_s = 0.0
            raise self._connection.unexpected(reply)
        return Reading(self._sighting(reply), reply.date_s)

    async def acknowledge(self, notice_id: str) -> None:
        """AWS does not ask for it."""

    async def close(self) -> None:
        """As `NoticeReader.close`."""
        await self._connection.close()

    async def _look(self) -> Reply:
        return await self._connection.request(
            "GET", _PATH, headers={"X-aws-ec2-metadata-token": self._token}, timeout_s=self._timeout_s
        )

    async def _renew_token(self) -> None:
        reply = await self._connection.request(
            "PUT",
            "/latest/api/token",
            headers={"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_TTL_S)},
            timeout_s=self._timeout_s,
        )
        if reply.status != 200:
            raise self._connection.unexpected(reply)
        try:
            token = reply.body.decode("ascii")
        except UnicodeDecodeError:
            token = ""
        if not 0 < len(token) <= TOKEN_CHARACTERS_MAX or not token.isprintable():
            raise self._connection.nonsense("a token that is none")
        self._token = token
        self._token_end_s = self._clock.monotonic_s() + TOKEN_TTL_S

    def _sighting(self, reply: Reply) -> Sighting:
        try:
            found = _INSTANCE_ACTION_DECODER.decode(reply.body)
            deadline_s = parse_rfc3339(found.time)
        except (msgspec.MsgspecError, ValueError, OverflowError) as error:
            raise self._connection.nonsense(f"instance-action: {error}") from error
        return Sighting(f"aws-{found.action[:20]}-{found.time[:30]}", NoticeKind.PREEMPTION, deadline_s)
