"""The spot market of the local fabric: posts notices, and takes the host when its time is over.

Deadlines are in the record, so a supervisor that starts again keeps them, also those that passed meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Iterable

import msgspec

from architect.clouds.local.hosts import LocalHosts
from architect.clouds.local.record import HostRecord, PostedNotice, PresenceState, RecordStore
from architect.errors import ArchitectError, UsageError
from architect.model.notice import NoticeKind
from architect.model.times import rfc3339
from architect.runtime.clock import Clock

NOTICE_S_MAX = 86400.0
ACKNOWLEDGED_GRACE_S = 1.0
RETRY_S = 1.0

_log = logging.getLogger(__name__)


def due_hosts(hosts: Iterable[HostRecord], now_s: float) -> list[str]:
    """The hosts whose deadline has passed."""
    return [host.name for host in hosts if host.notice is not None and host.notice.deadline_monotonic_s <= now_s]


def next_deadline_s(hosts: Iterable[HostRecord], now_s: float) -> float | None:
    """Seconds until the next deadline that has not passed; None if there is none."""
    left = [host.notice.deadline_monotonic_s - now_s for host in hosts if host.notice is not None]
    return min((left_s for left_s in left if left_s > 0), default=None)


class SpotMarket:
    """Preempts hosts. `run` must run, or no deadline is kept."""

    def __init__(self, store: RecordStore, group: asyncio.TaskGroup, clock: Clock) -> None:
        self._store = store
        self._group = group
        self._clock = clock
        self._changed = asyncio.Event()
        self._taking: set[str] = set()

    def preempt(self, hosts: LocalHosts, name: str, notice_s: float) -> HostRecord:
        """Post a notice of that length; a host under notice keeps the earlier deadline. Idempotent.

        Raises:
            NotFoundError: there is no such host.
            UsageError: no such length.
        """
        if not 0 <= notice_s <= NOTICE_S_MAX:
            raise UsageError(f"notice of {notice_s} s", "is not between 0 and a day", "give seconds, for example --notice 30")
        host = self._store.host(name)
        now_s = self._clock.monotonic_s()
        deadline_s = now_s + notice_s
        if host.notice is None or deadline_s < host.notice.deadline_monotonic_s:
            wall_s = self._clock.wall_s()
            notice = PostedNotice(
                id=host.notice.id if host.notice is not None else f"notice-{secrets.token_hex(6)}",
                kind=NoticeKind.PREEMPTION,
                posted=host.notice.posted if host.notice is not None else rfc3339(wall_s),
                deadline=rfc3339(wall_s + notice_s),
                deadline_monotonic_s=deadline_s,
            )
            hosts.post(name, notice)
            _log.info("host %s is under notice for %.1f s", name, notice_s)
        self._changed.set()
        return self._store.host(name)

    def acknowledged(self, name: str) -> None:
        """The host's guest lets its notice proceed: it is taken almost at once."""
        host = self._store.record.hosts.get(name)
        if host is None or host.notice is None:
            return
        deadline_s = min(host.notice.deadline_monotonic_s, self._clock.monotonic_s() + ACKNOWLEDGED_GRACE_S)
        notice = msgspec.structs.replace(host.notice, deadline_monotonic_s=deadline_s)
        self._store.change(self._store.record.with_host(msgspec.structs.replace(host, notice=notice)))
        self._changed.set()

    async def run(self, hosts: LocalHosts) -> None:
        """Take hosts at their deadlines, for ever."""
        while True:
            self._changed.clear()
            now_s = self._clock.monotonic_s()
            present = [host for host in self._store.record.hosts.values() if host.state is PresenceState.PRESENT]
            for name in due_hosts(present, now_s):
                if name not in self._taking:
                    self._taking.add(name)
                    self._group.create_task(self._take(hosts, name), name=f"take {name}")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(next_deadline_s(present, now_s)):
                    await self._changed.wait()

    async def _take(self, hosts: LocalHosts, name: str) -> None:
        try:
            while True:
                try:
                    await hosts.destroy(name)
                except ArchitectError as error:
                    _log.warning("host %s is not gone yet: %s", name, error)
                    await self._clock.sleep(RETRY_S)
                else:
                    _log.info("host %s has been taken", name)
                    return
        finally:
            self._taking.discard(name)
