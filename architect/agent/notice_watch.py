"""The agent's ear at its cloud: the notice that stands, reported at once when it changes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

import msgspec

from architect.clouds import NoticeSource
from architect.errors import UnavailableError
from architect.model.notice import Notice

_log = logging.getLogger(__name__)


class NoticeWatch:
    """Holds the notice that stands: None if there is none, unset until the cloud has been heard.

    :param open_source: called in a thread, when the watch begins.
    :param changed: called at every change.
    """

    def __init__(self, open_source: Callable[[], NoticeSource], changed: Callable[[], None]) -> None:
        self._open_source = open_source
        self._source: NoticeSource | None = None
        self._changed = changed
        self.notice: Notice | msgspec.UnsetType | None = msgspec.UNSET

    async def run(self) -> None:
        """Watch for ever.

        Raises:
            UsageError: there is no such provider.
        """
        source = self._source = await asyncio.to_thread(self._open_source)
        async with contextlib.aclosing(source.watch()) as notices:
            async for notice in notices:
                if notice is not None:
                    _log.warning("notice %s: %s, deadline %s", notice.id, notice.kind, notice.deadline)
                elif isinstance(self.notice, Notice):
                    _log.warning("notice %s was withdrawn", self.notice.id)
                self.notice = notice
                self._changed()

    async def acknowledge(self, notice_id: str) -> None:
        """Tell the cloud that nothing is left here.

        Raises:
            UnavailableError, PeerError: the metadata server did not take it.
        """
        if self._source is None:
            raise UnavailableError("notices", "the agent has only just started", "ask again in a moment")
        await self._source.acknowledge(notice_id)
