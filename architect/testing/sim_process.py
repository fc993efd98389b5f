"""A simulated process: a tree of tasks that dies at once, is frozen and thawed, and whose every scheduling point is counted.

Each task of a process runs inside `_Stepped`, which sees every moment at which the task goes on after an await: a *scheduling
point*. A fault may say "kill it at its n-th point", so that over enough runs a process dies at every await that it has. A frozen
process is resumed nowhere: what it would have been told waits, in order, until it thaws, while everybody else's clock goes on.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any

from architect.errors import first_error
from architect.testing.sim_events import EventKind
from architect.testing.virtual_clock import SimTask

if TYPE_CHECKING:
    from architect.testing.sim_world import World

running_process: contextvars.ContextVar[SimProcess | None] = contextvars.ContextVar("process", default=None)


class ProcessKilledError(BaseException):
    """The process that runs this has been killed; nothing it does has an effect any more."""


class SimProcess:
    """An agent, the control plane or an edge.

    :param host: where it runs: a frozen host freezes it.
    :param on_crash: called when it is killed at a scheduling point that `crash_after` chose; it must kill the process.
    """

    def __init__(self, world: World, name: str, host: str = "", on_crash: Callable[[], None] | None = None) -> None:
        self.world = world
        self.name = name
        self.host = host
        self.is_alive = False
        self.points = 0
        self._crash_at: int | None = None
        self._on_crash = on_crash or (lambda: self.kill("at a scheduling point"))
        self._tasks: set[SimTask] = set()

    def start(self, main: Callable[[], Awaitable[None]]) -> None:
        """Run `main` as this process."""
        assert not self.is_alive
        self.is_alive = True
        self.run(main)

    def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run `work` in this process, beside its main."""
        context = contextvars.copy_context()
        context.run(running_process.set, self)
        self.world.group.create_task(self._run(work), context=context)

    def crash_after(self, points: int) -> None:
        """Kill it at the scheduling point that comes after `points` others."""
        self._crash_at = self.points + points + 1

    async def _run(self, main: Callable[[], Awaitable[None]]) -> None:
        try:
            await main()
        except (ProcessKilledError, asyncio.CancelledError):
            pass
        except BaseExceptionGroup as errors:
            if not self.is_alive or errors.subgroup(ProcessKilledError) is not None:
                return
            self.world.judge.blame(f"{self.name} crashed: {first_error(errors)!r}")
            self.kill("crashed by a defect")

    def adopt(self, task: SimTask) -> None:
        """A task that was started by this process."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def kill(self, why: str) -> None:
        """`kill -9`: no cleanup of it has an effect."""
        if not self.is_alive:
            return
        self.world.say(self.name, f"killed ({why})")
        self.world.note(EventKind.CRASH, self.name, host=self.host)
        self.is_alive = False
        for task in sorted(self._tasks, key=lambda task: task.serial):
            task.cancel()

    def check_alive(self) -> None:
        """Raises ProcessKilledError in a dead process."""
        if not self.is_alive:
            raise ProcessKilledError

    def step(self) -> asyncio.Future[None] | None:
        """Count a scheduling point; a future to wait for if the process is frozen."""
        self.points += 1
        if self.points == self._crash_at and self.is_alive:
            self._on_crash()
        return self.world.thawing(self.host) if self.is_alive else None


class _Stepped(Coroutine[Any, Any, Any]):
    """A coroutine of a process, stopped at its scheduling points while the process is frozen."""

    def __init__(self, inner: Coroutine[Any, Any, Any], process: SimProcess) -> None:
        self._inner = inner
        self._process = process
        self._kept: tuple[Any, ...] | None = None

    def send(self, value: Any) -> Any:
        if self._kept is None:
            return self._go_on((value,))
        kept, self._kept = self._kept, None
        return self._go_on(kept)

    def throw(self, kind: Any, value: Any = None, traceback: Any = None) -> Any:
        """An exception that comes while the task is frozen takes the place of what it waited for."""
        error = value if isinstance(value, BaseException) else kind() if isinstance(kind, type) else kind
        self._kept = None
        return self._go_on((None, error))

    def close(self) -> None:
        self._inner.close()

    def _go_on(self, input_: tuple[Any, ...]) -> Any:
        thawing = self._process.step()
        if thawing is not None:
            self._kept = input_
            thawing._asyncio_future_blocking = True
            return thawing
        if len(input_) == 2:
            return self._inner.throw(input_[1])
        return self._inner.send(input_[0])

    def __await__(self) -> Any:
        return self

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        return self.send(None)


def stepped(coroutine: Coroutine[Any, Any, Any]) -> tuple[Coroutine[Any, Any, Any], SimProcess | None]:
    """A new task's coroutine as the process that starts it runs it, and that process."""
    process = running_process.get()
    return (_Stepped(coroutine, process), process) if process is not None else (coroutine, None)
