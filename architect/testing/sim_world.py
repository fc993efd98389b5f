"""The world of a simulation: one seed, one clock, processes that can be killed, calls that can be cut short, a trace, a judge.

Every port of the simulated hosts goes through `World.call`. The call is numbered, and a fault of the scenario may strike at exactly
that number: before it is sent, or after it has taken effect and before its answer arrives. What a call does happens in the party
that is called (QEMU, memory process, store, edge): it goes on when the caller is killed or stops waiting.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from architect.errors import HostError
from architect.model.ids import VmId
from architect.testing.sim_events import EventKind, SimEvent
from architect.testing.sim_process import SimProcess, running_process, stepped
from architect.testing.sim_result import Result
from architect.testing.sim_trace import TraceLine
from architect.testing.virtual_clock import START_S, SimTask, VirtualLoop
from architect.wire.agent_messages import MigrationReport

if TYPE_CHECKING:
    from architect.testing.sim_machine import SimVm

ResultT = TypeVar("ResultT")
TRACE_LINES_MAX = 50_000


class Judge:
    """Collects what must not happen, and what happened that excuses a lost VM."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.violations: list[str] = []
        self.excuses: dict[VmId, list[str]] = {}

    def blame(self, text: str) -> None:
        """An invariant does not hold."""
        if text not in self.violations and len(self.violations) < 20:
            self._world.say("JUDGE", f"VIOLATION: {text}")
            self.violations.append(text)

    def excuse(self, vm: VmId, text: str) -> None:
        """A process of the VM was killed, or its host went: it may be lost."""
        self.excuses.setdefault(vm, []).append(text)


class World:
    """Everything that the simulated parties share."""

    def __init__(self, loop: VirtualLoop, seed: int, group: asyncio.TaskGroup) -> None:
        self.loop = loop
        self.seed = seed
        self.group = group
        self.random = random.Random(seed)
        self.trace: deque[TraceLine] = deque(maxlen=TRACE_LINES_MAX)
        self.vms: dict[VmId, SimVm] = {}
        self.events: list[SimEvent] = []
        self.judge = Judge(self)
        self.call_count = 0
        self.on_call: Callable[[int, str, SimProcess | None, str], None] = lambda number, phase, process, name: None
        self.slowness: dict[str, float] = {}
        self._frozen: dict[str, asyncio.Future[None]] = {}
        loop.make_task = self._make_task

    def say(self, who: str, text: str, vm: str = "") -> None:
        """A line of the trace, about a VM if it is about one."""
        self.trace.append(TraceLine(self.loop.now_s - START_S, who, vm, text))

    def note(self, kind: EventKind, party: str, vm: str = "", **details: Any) -> None:
        """Something happened that ownership is about; `details` are the event's other fields."""
        self.events.append(SimEvent(self.loop.now_s - START_S, kind, party, vm, **details))

    def result(self, scenario: Any, reports: list[MigrationReport], facts: dict[str, int]) -> Result:
        """The verdict of the run that ends now."""
        return Result(
            scenario,
            tuple(self.judge.violations),
            tuple(reports),
            facts,
            self.call_count,
            self.loop.now_s - START_S,
            tuple(self.trace),
            tuple(self.events),
        )

    def spawn(self, work: Awaitable[ResultT]) -> asyncio.Task[ResultT]:
        """Run `work` outside of all processes."""
        context = contextvars.copy_context()
        context.run(running_process.set, None)

        async def run() -> ResultT:
            return await work

        return asyncio.get_running_loop().create_task(run(), context=context)

    def delay_s(self, low_s: float, high_s: float, place: str = "") -> float:
        """A random latency, longer where the scenario says so."""
        return self.random.uniform(low_s, high_s) * self.slowness.get(place, 1.0)

    async def call(
        self,
        name: str,
        effect: Callable[[], Awaitable[ResultT]],
        latency_s: tuple[float, float] = (0.0002, 0.002),
        place: str = "",
        stops: bool = False,
        vm: str = "",
    ) -> ResultT:
        """Perform `effect` in the called party, on behalf of the current process.

        :param stops: the effect ends when the caller stops waiting (long ones that only wait, or copy).
        """
        process = running_process.get()
        self.call_count += 1
        number = self.call_count
        if process is not None:
            process.check_alive()
        self.say(process.name if process else "-", f"#{number} {name}", vm)
        self.on_call(number, "before", process, name)
        if process is not None:
            process.check_alive()
        task = self.spawn(self._perform(number, process, name, effect, latency_s, place, vm))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if stops and (process is None or process.is_alive):
                task.cancel()
            task.add_done_callback(_seen)
            raise

    async def _perform(
        self,
        number: int,
        process: SimProcess | None,
        name: str,
        effect: Callable[[], Awaitable[ResultT]],
        latency_s: tuple[float, float],
        place: str,
        vm: str,
    ) -> ResultT:
        await asyncio.sleep(self.delay_s(*latency_s, place) / 2)
        await self.wait_thawed(place)
        try:
            result = await effect()
        except BaseException as error:
            if not isinstance(error, asyncio.CancelledError):
                self.say(process.name if process else "-", f"#{number} {name} -> {type(error).__name__}: {error}", vm)
            raise
        self.on_call(number, "after", process, name)
        await asyncio.sleep(self.delay_s(*latency_s, place) / 2)
        return result

    def freeze(self, host: str, duration_s: float) -> None:
        """Stop all processes of a host for a while; clocks go on."""
        if host in self._frozen:
            return
        self.say(f"host {host}", f"frozen for {duration_s:.2f} s")
        self.note(EventKind.FREEZE, f"host {host}", host=host)
        self._frozen[host] = self.loop.create_future()
        self.loop.call_later(duration_s, self._thaw, host)

    def _thaw(self, host: str) -> None:
        self.say(f"host {host}", "thawed")
        self.note(EventKind.THAW, f"host {host}", host=host)
        self._frozen.pop(host).set_result(None)

    def is_frozen(self, host: str) -> bool:
        """Whether nothing runs on the host just now."""
        return host in self._frozen

    def thawing(self, host: str) -> asyncio.Future[None] | None:
        """Done when the host has thawed; None if it is not frozen."""
        frozen = self._frozen.get(host)
        if frozen is None:
            return None
        waiting: asyncio.Future[None] = self.loop.create_future()
        frozen.add_done_callback(lambda _: None if waiting.done() else waiting.set_result(None))
        return waiting

    async def wait_thawed(self, host: str) -> None:
        """Until things run on the host."""
        while (thawing := self.thawing(host)) is not None:
            await thawing

    def _make_task(self, coroutine: Coroutine[Any, Any, Any], context: contextvars.Context | None, name: str | None) -> SimTask:
        wrapped, process = context.run(stepped, coroutine) if context is not None else stepped(coroutine)
        task = SimTask(wrapped, loop=self.loop, context=context, name=name)
        if process is not None:
            process.adopt(task)
        return task


def current_process() -> SimProcess:
    """The process that runs this."""
    process = running_process.get()
    assert process is not None
    return process


async def poll(is_so: Callable[[], bool]) -> None:
    """Until it is so, looked at ever less often: for waits whose end nobody tells."""
    pause_s = 0.001
    while not is_so():
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 0.25)


def gone(what: str) -> HostError:
    """The error of a call to a party that is dead."""
    return HostError(what, "the process has died", "see the events of the host")


def _seen(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()
