"""The watch itself, the same for every cloud: look, compare, yield; back off while the metadata server fails.

A NoticeReader speaks the cloud's protocol; this turns its readings into a NoticeSource.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator

import msgspec

from architect.clouds.deadline import DeadlineBinding
from architect.clouds.notice_source import NoticeHealth, NoticeReader
from architect.errors import PeerError, UnavailableError
from architect.model.notice import Notice
from architect.runtime.clock import Clock

INTERVAL_S = 1.0
BACKOFF_S_MAX = 5.0

_log = logging.getLogger(__name__)


class NoticeWatcher:
    """A NoticeSource over a reader.

    :param interval_s: readings start at most this often; a reader that hangs until a change loses nothing by it.
    """

    def __init__(self, reader: NoticeReader, clock: Clock, *, interval_s: float = INTERVAL_S) -> None:
        self._reader = reader
        self._clock = clock
        self._interval_s = interval_s
        self._binding = DeadlineBinding(clock)
        self._health = NoticeHealth()

    @property
    def health(self) -> NoticeHealth:
        """As `NoticeSource.health`."""
        return self._health

    def remaining_s(self) -> float | None:
        """As `NoticeSource.remaining_s`."""
        return self._binding.remaining_s()

    async def acknowledge(self, notice_id: str) -> None:
        """As `NoticeSource.acknowledge`."""
        await self._reader.acknowledge(notice_id)

    async def watch(self) -> AsyncGenerator[Notice | None, None]:
        """As `NoticeSource.watch`."""
        is_known = False
        try:
            while True:
                begin_s = self._clock.monotonic_s()
                pause_s = self._interval_s
                try:
                    reading = await self._reader.read()
                except (UnavailableError, PeerError) as error:
                    pause_s = self._failed(str(error))
                else:
                    self._health = NoticeHealth(answered_at_s=self._clock.monotonic_s())
                    if self._binding.receive(reading) or not is_known:
                        is_known = True
                        yield self._binding.notice
                await self._clock.sleep(max(0.0, begin_s + pause_s - self._clock.monotonic_s()))
        finally:
            await self._reader.close()

    def _failed(self, cause: str) -> float:
        """Note a failure; how long to pause."""
        health = self._health
        if health.failures == 0:
            _log.warning("notices: %s", cause)
        now_s = self._clock.monotonic_s()
        since_s = now_s if health.failing_since_s is None else health.failing_since_s
        self._health = msgspec.structs.replace(
            health, failing_since_s=since_s, failures=health.failures + 1, last_error=cause
        )  # fmt: skip
        return min(self._interval_s * float(1 << min(health.failures, 10)), BACKOFF_S_MAX)
