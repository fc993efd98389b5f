"""Virtual time for asyncio tests: sleeping takes no time, the clock jumps to the next timer whenever nobody has anything to do.

Sockets inside the process work as usual, since what was written is readable at once. Threads do not: a loop that waits for one
would jump ahead of it, so give `InlineExecutor` to what runs blocking work.

    run_virtual(test())        instead of asyncio.run(test())
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

from architect.testing.virtual_clock import WALL_START_S, VirtualLoop

ResultT = TypeVar("ResultT")


class LoopClock:
    """A `runtime.clock.Clock` that reads the running loop's time."""

    def monotonic_s(self) -> float:
        """The loop's time."""
        return asyncio.get_running_loop().time()

    def wall_s(self) -> float:
        """The loop's time, from a fixed date on."""
        return WALL_START_S + asyncio.get_running_loop().time()

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
    with asyncio.Runner(loop_factory=functools.partial(VirtualLoop, sees_files=True)) as runner:
        return runner.run(work)
