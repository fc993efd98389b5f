"""Time that passes only when nothing is left to do: an asyncio loop for simulations.

`VirtualLoop` runs callbacks as asyncio does, and instead of waiting for the next timer it jumps to it. So `asyncio.sleep`,
`asyncio.timeout` and `loop.call_later` work unchanged, an hour takes milliseconds, and a run is a function of its seed: tasks
hash by their serial number, so that even the order in which asyncio walks its sets of tasks is the same every time.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")
START_S = 1000.0
WALL_START_S = 1_800_000_000.0


class DeadlockError(Exception):
    """Every task waits, and no timer is set: nothing can ever happen again."""


class SimTask(asyncio.Task[Any]):
    """A task with a hash that does not depend on its address."""

    _serial = 0

    def __init__(self, *args: Any, **options: Any) -> None:
        SimTask._serial += 1
        self.serial = SimTask._serial
        super().__init__(*args, **options)

    def __hash__(self) -> int:
        return self.serial

    def __eq__(self, other: object) -> bool:
        return self is other


class _JumpingSelector(selectors.DefaultSelector):
    """Waiting moves the loop's clock. With `sees_files` whatever is ready on a descriptor comes first; without, nothing ever is."""

    loop: VirtualLoop

    def __init__(self, sees_files: bool) -> None:
        super().__init__()
        self._sees_files = sees_files

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self._sees_files and ((ready := super().select(0)) or timeout == 0):
            return ready
        if timeout is None:
            raise DeadlockError("every task waits and no timer is set")
        self.loop.now_s += max(timeout, 0.0)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop on virtual time.

    :param sees_files: serve sockets and pipes inside the process, too; a simulation has none, and is faster without.
    """

    def __init__(self, sees_files: bool = False) -> None:
        selector = _JumpingSelector(sees_files)
        selector.loop = self
        self.now_s = START_S
        super().__init__(selector)
        self._clock_resolution = 1e-9
        self.make_task: Callable[[Any, contextvars.Context | None, str | None], SimTask] | None = None
        self.set_task_factory(self._make_task)

    def time(self) -> float:
        """Virtual seconds."""
        return self.now_s

    def _make_task(self, loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> Any:
        if self.make_task is not None:
            return self.make_task(coro, options.get("context"), options.get("name"))
        return SimTask(coro, loop=loop, **options)


class VirtualClock:
    """A `runtime.clock.Clock` of the running virtual loop; `skew_s` shifts its date, as two hosts' clocks differ."""

    def __init__(self, loop: VirtualLoop, skew_s: float = 0.0) -> None:
        self._loop = loop
        self._skew_s = skew_s

    def monotonic_s(self) -> float:
        """The loop's time."""
        return self._loop.now_s

    def wall_s(self) -> float:
        """The loop's time as a date."""
        return WALL_START_S + self._loop.now_s + self._skew_s

    async def sleep(self, duration_s: float) -> None:
        """Let virtual time pass."""
        await asyncio.sleep(duration_s)


class SeededEntropy:
    """A `runtime.clock.Entropy` from a seed."""

    def __init__(self, seed: object) -> None:
        self._random = random.Random(repr(seed))

    def random_bytes(self, count: int) -> bytes:
        """The seed's next bytes."""
        return self._random.randbytes(count)


def run_virtual(main: Callable[[VirtualLoop], Coroutine[Any, Any, ResultT]]) -> ResultT:
    """Run `main` on a new virtual loop and return its result; cancels what it leaves behind."""
    SimTask._serial = 0
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(main(loop))
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
