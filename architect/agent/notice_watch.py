"""The agent's ear at its cloud: the notice that stands, reported at once when it changes."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

from architect.clouds.notice_source import NoticeSource
from architect.model.notice import Notice

_log = logging.getLogger(__name__)


class NoticeWatch:
    """Holds the notice that stands.

    :param changed: called at every change.
    """

    def __init__(self, source: NoticeSource, changed: Callable[[], None]) -> None:
        self._source = source
        self._changed = changed
        self.notice: Notice | None = None

    async def run(self) -> None:
        """Watch for ever."""
        async with contextlib.aclosing(self._source.watch()) as notices:
            async for notice in notices:
                if notice is not None:
                    _log.warning("notice %s: %s, deadline %s", notice.id, notice.kind, notice.deadline)
                elif self.notice is not None:
                    _log.warning("notice %s was withdrawn", self.notice.id)
                self.notice = notice
                self._changed()

    async def acknowledge(self, notice_id: str) -> None:
        """Tell the cloud that nothing is left here.

        Raises:
            UnavailableError, PeerError: the metadata server did not take it.
        """
        await self._source.acknowledge(notice_id)
