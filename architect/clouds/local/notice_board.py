"""A local host's notice board: what its metadata server shows, and who waits for it to change."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from architect.clouds.local.record import PostedNotice


class NoticeBoard:
    """The notice that stands for one instance, if one does, and a number that grows with each change.

    :param acknowledged: told when the guest of the instance says that the notice may proceed; gets the notice's id.
    """

    def __init__(
        self,
        instance: str,
        region: str,
        *,
        notice: PostedNotice | None = None,
        incarnation: int = 1,
        acknowledged: Callable[[str], None] = lambda notice_id: None,
    ) -> None:
        self.instance = instance
        self.region = region
        self.notice = notice
        self.incarnation = incarnation
        self.acknowledged = acknowledged
        self._changed = asyncio.Event()

    def post(self, notice: PostedNotice | None) -> None:
        """Put up a notice, change it, or withdraw it (None)."""
        if notice == self.notice:
            return
        self.notice = notice
        self.incarnation += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_change(self, timeout_s: float) -> bool:
        """Wait for the next change, `timeout_s` at most; False if none came."""
        changed = self._changed
        try:
            async with asyncio.timeout(timeout_s):
                await changed.wait()
        except TimeoutError:
            return False
        return True
