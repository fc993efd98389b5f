"""Followers: long work says how it goes, and whoever started it (or several, or nobody) listens.

The work does not depend on its followers: it goes on when they leave, and starts again after a restart of the control plane
without any. A follower that reads slowly loses progress lines, never the end.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any

import msgspec

from architect.errors import ArchitectError

LINES_QUEUED_MAX = 64


class Progress(msgspec.Struct, frozen=True):
    """A line for people; `fraction` of the work done where it is known; `vm` and `migration` are the ids of what it is about,
    `name` is the VM's."""

    progress: str
    fraction: float | None = None
    migration: str | None = None
    vm: str | None = None
    name: str | None = None


class Follower:
    """One listener; iterate it: `Progress` lines, and at last the result. Raises the error that ended the work."""

    def __init__(self) -> None:
        self._lines: deque[Progress] = deque(maxlen=LINES_QUEUED_MAX)
        self._end: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._woken = asyncio.Event()

    def say(self, line: Progress) -> None:
        """Add a line; the oldest unread one goes if there are too many."""
        self._lines.append(line)
        self._woken.set()

    def finish(self, result: Any) -> None:
        """End with a result, or with an error to raise."""
        if not self._end.done():
            if isinstance(result, ArchitectError):
                self._end.set_exception(result)
                self._end.exception()
            else:
                self._end.set_result(result)
        self._woken.set()

    async def follow(self) -> AsyncGenerator[Progress | Any]:
        """Progress lines as they come, then the result.

        Raises:
            ArchitectError: the work failed.
        """
        while True:
            self._woken.clear()
            while self._lines:
                yield self._lines.popleft()
            if self._end.done():
                yield self._end.result()
                return
            await self._woken.wait()


class Followers:
    """Who follows what, by a key such as the VM's or the move's id."""

    def __init__(self) -> None:
        self._by_key: dict[str, list[Follower]] = {}

    def follow(self, key: str) -> Follower:
        """A new follower of that work."""
        follower = Follower()
        self._by_key.setdefault(key, []).append(follower)
        return follower

    def leave(self, key: str, follower: Follower) -> None:
        """It listens no more. Idempotent."""
        listeners = self._by_key.get(key, [])
        if follower in listeners:
            listeners.remove(follower)
        if not listeners:
            self._by_key.pop(key, None)

    def say(self, key: str, line: Progress) -> None:
        """Tell all who follow it."""
        for follower in self._by_key.get(key, ()):
            follower.say(line)

    def finish(self, key: str, result: Any) -> None:
        """The work has ended, with a result or an error."""
        for follower in self._by_key.pop(key, ()):
            follower.finish(result)
