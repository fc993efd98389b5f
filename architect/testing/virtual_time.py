"""Virtual time for asyncio tests: sleeping takes no time, the clock jumps to the next timer whenever nobody has anything to do.

Sockets inside the process work as usual, since what was written is readable at once. Threads do not: a loop that waits for one
would jump ahead of it, so give `InlineExecutor` to what runs blocking work.

    run_virtual(test())        instead of asyncio.run(test())
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")

EPOCH_S = 1_800_000_000.0


class _JumpingSelector(selectors.DefaultSelector):
    """Never waits for time to pass: adds it to `now_s` instead."""

    now_s = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            raise RuntimeError("everybody waits, and no timer is set: a deadlock")
        self.now_s += max(timeout, 0)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop on virtual time."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Virtual seconds."""
        return self._jumping.now_s


class LoopClock:
    """A `runtime.clock.Clock` that reads the running loop's time."""

    def monotonic_s(self) -> float:
        """The loop's time."""
        return asyncio.get_running_loop().time()

    def wall_s(self) -> float:
        """The loop's time, from a fixed date on."""
        return EPOCH_S + asyncio.get_running_loop().time()

    async def sleep(self, duration_s: float) -> None:
        """Wait, virtually."""
        await asyncio.sleep(duration_s)


class InlineExecutor(Executor):
    """Runs what it is given at once."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run it now; the future is done."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def run_virtual(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Run a coroutine on virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)
