"""Jobs: the long work under way, one at a time for each key, all owned by one task group.

A job that fails in a way nobody foresaw does not take the control plane down: it is logged, and may start again only after a
pause that doubles up to `PAUSE_S_MAX`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from architect.runtime.clock import Clock

JOBS_MAX = 1024
PAUSE_S_MIN = 1.0
PAUSE_S_MAX = 60.0

_log = logging.getLogger(__name__)


class Jobs:
    """Runs coroutines by key.

    :param on_end: called with the key and the error (None if it ended well) after each job.
    """

    def __init__(self, clock: Clock, on_end: Callable[[str, Exception | None], None]) -> None:
        self._clock = clock
        self._on_end = on_end
        self._group: asyncio.TaskGroup | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._pauses: dict[str, tuple[float, float]] = {}

    async def run(self) -> None:
        """Own the jobs until cancelled; they are cancelled with it."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                for task in self._tasks.values():
                    task.cancel()

    def is_running(self, key: str) -> bool:
        """Whether that job is under way."""
        return key in self._tasks

    def start(self, key: str, work: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        """Start it unless it runs, pauses after a failure, or too many run; says whether it was started."""
        resume_at_s, _ = self._pauses.get(key, (0.0, 0.0))
        if self._group is None or key in self._tasks or len(self._tasks) >= JOBS_MAX or self._clock.monotonic_s() < resume_at_s:
            return False
        self._tasks[key] = self._group.create_task(self._guard(key, work))
        return True

    async def _guard(self, key: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        failure: Exception | None = None
        try:
            await work()
            self._pauses.pop(key, None)
        except Exception as error:  # the boundary: one job's defect must not end the others
            failure = error
            _, pause_s = self._pauses.get(key, (0.0, PAUSE_S_MIN / 2))
            pause_s = min(pause_s * 2, PAUSE_S_MAX)
            self._pauses[key] = (self._clock.monotonic_s() + pause_s, pause_s)
            _log.exception("%s failed; again in %.0f s", key, pause_s)
        finally:
            self._tasks.pop(key, None)
        self._on_end(key, failure)
