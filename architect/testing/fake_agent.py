"""Fake agents: hosts whose VMs are values, for tests of whoever talks to agents. They speak the protocol over a real `Channel`.

A `FakeWorld` holds the hosts and the moves between them; what runs there goes on when nobody is connected, as on real hosts. Its
knobs make things go wrong: `hold` stops moves before they enter a state, `refuse_run` and `refuse_move` answer with an error,
`lose_host` takes a host away; `spans` are what a move that is done tells of itself. Terms follow the ownership rules, and a VM that
would run twice is an assertion.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import msgspec

from architect.errors import ArchitectError, ConflictError, NotFoundError
from architect.model.handover_span import Side, Span
from architect.model.handover_state import HandoverState, MigrationMode
from architect.model.ids import HostName, MigrationId, VmId
from architect.model.notice import Notice
from architect.model.sizes import GIB
from architect.model.vm_spec import VmRequest
from architect.model.vm_state import VmState
from architect.runtime.rpc import Call, Channel, Handler
from architect.testing.fake_vm import FakeMove, FakeVm, fake_facts
from architect.version import VERSION
from architect.wire.agent_messages import (
    AcknowledgeNotice,
    ClockIs,
    Done,
    ExecExit,
    ExecInput,
    ExecOutput,
    ExecStart,
    GiveUpMove,
    Hello,
    HostFacts,
    HostReport,
    LogData,
    MigrateVm,
    MigrationProgress,
    MigrationReport,
    Phase,
    Progress,
    ReadClock,
    ReadLog,
    RemoveVm,
    RunVm,
    SourceGone,
    StopVm,
    VmStatus,
    Welcome,
)
from architect.wire.framing import PROTOCOL_VERSION

MOVE_STEPS = (
    HandoverState.PREPARING,
    HandoverState.PRECOPY,
    HandoverState.SWITCHOVER,
    HandoverState.COMMITTED,
    HandoverState.DONE,
)

BEFORE_CUT = (HandoverState.PLANNED, HandoverState.PREPARING, HandoverState.PRECOPY)

FAKE_CLOCK_AHEAD_S = 1000.0
"""How far the hosts' monotonic clocks are ahead of the test's."""

Connect = Callable[[Handler], Awaitable[Channel]]


class FakeWorld:
    """All hosts and moves; `async with` it, since it owns the moves' tasks."""

    def __init__(self) -> None:
        self.agents: dict[HostName, FakeAgent] = {}
        self.moves: dict[MigrationId, FakeMove] = {}
        self.hold: dict[HandoverState, asyncio.Event] = {}
        self.refuse_run: ArchitectError | None = None
        self.refuse_move: dict[HostName, ArchitectError] = {}
        self.run_gate: asyncio.Event | None = None
        self.spans: tuple[Span, ...] = (Span("bulk", Side.SOURCE, 0.1, 0.25), Span("memory-scan", Side.SOURCE, 0.1, 0.11, "bulk"))
        self.unwanted: dict[MigrationId, str] = {}
        self.requests: list[Any] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def add_host(self, name: str, memory_bytes: int = 2 * GIB, provider: str = "aws", port: int = 7402) -> FakeAgent:
        """A new host; connect its agent."""
        agent = FakeAgent(self, fake_facts(name, memory_bytes, provider, port))
        self.agents[agent.name] = agent
        return agent

    async def lose_host(self, name: str) -> None:
        """The host vanishes with what runs on it."""
        agent = self.agents.pop(HostName(name))
        agent.vms.clear()
        await agent.disconnect()
        for move in self.moves.values():
            if name in (move.report.source, move.report.target) and not move.report.state.is_terminal:
                move.advance(HandoverState.FAILED, reason=f"{name} vanished")
                await self._forget_incoming(move)

    def running_at(self, vm: VmId) -> list[HostName]:
        """Where the VM runs: one host, unless something is badly wrong."""
        return [name for name, agent in self.agents.items() if vm in agent.vms and agent.vms[vm].state is VmState.RUNNING]

    def start_move(self, request: MigrateVm, source: FakeAgent) -> FakeMove:
        """Begin a handover, or find the one that has this id."""
        if request.migration in self.moves:
            return self.moves[request.migration]
        if (reason := self.unwanted.get(request.migration)) is not None:
            raise ConflictError(f"vm {request.vm}", reason, "move it again if you want it elsewhere")
        if request.vm not in source.vms:
            raise NotFoundError(f"vm {request.vm}", f"is not on host {source.name}", "look where it is")
        report = MigrationReport(
            request.migration, request.vm, source.name, request.target.name, MigrationMode.PRECOPY, HandoverState.PLANNED,
            clock_at_s=asyncio.get_running_loop().time() + FAKE_CLOCK_AHEAD_S,
        )  # fmt: skip
        move = self.moves[request.migration] = FakeMove(report)
        self.spawn(self._carry_out(move, source))
        return move

    async def give_up_move(self, identity: MigrationId, reason: str) -> None:
        """As a source does: undone before its cut, gone on with after it, refused if it has not been asked for yet."""
        move = self.moves.get(identity)
        if move is None:
            self.unwanted[identity] = reason
        elif move.report.state in BEFORE_CUT:
            move.advance(HandoverState.FAILED, reason=reason)
            await self._forget_incoming(move)

    def spawn(self, work: Any) -> None:
        """A task that this world owns."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry_out(self, move: FakeMove, source: FakeAgent) -> None:
        for number, state in enumerate(MOVE_STEPS):
            await asyncio.sleep(0.05)
            if (gate := self.hold.get(state)) is not None:
                await gate.wait()
            target = self.agents.get(move.report.target)
            if move.report.state.is_terminal:
                return
            if (error := self.refuse_move.get(move.report.target)) is not None or target is None:
                move.error = error
                move.advance(HandoverState.FAILED, reason=str(error) if error else "the target does not answer")
                await self._forget_incoming(move)
                return
            if state is HandoverState.PREPARING:
                target.vms[move.report.vm] = replace(source.vms[move.report.vm], state=VmState.MIGRATING, term=0)
                await target.report()
            if state is HandoverState.COMMITTED:
                vm = source.vms.pop(move.report.vm)
                target.vms[move.report.vm] = replace(vm, term=vm.term + 1)
                assert self.running_at(move.report.vm) == [target.name]
                await source.report()
                await target.report()
            more: dict[str, Any] = {"progress": (number + 1) / len(MOVE_STEPS)}
            if state is HandoverState.DONE:
                more |= {"total_s": 0.25, "downtime_ms": 21.5, "rounds": 3, "bytes_sent": 4096, "bytes_peer": 4096}
                more |= {"spans": self.spans, "bytes_saved": 2048}
                more |= {"phases": (Phase("preparing", 0.0, 0.1), Phase("precopy", 0.1, 0.25))}
            move.advance(state, **more)

    async def _forget_incoming(self, move: FakeMove) -> None:
        target = self.agents.get(move.report.target)
        vm = target.vms.get(move.report.vm) if target is not None else None
        if target is not None and vm is not None and vm.state is VmState.MIGRATING:
            del target.vms[move.report.vm]
            await target.report()

    async def __aenter__(self) -> FakeWorld:
        return self

    async def __aexit__(self, *_: object) -> None:
        for agent in list(self.agents.values()):
            await agent.disconnect()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class FakeAgent:
    """One host's agent."""

    def __init__(self, world: FakeWorld, facts: HostFacts) -> None:
        self.world = world
        self.facts = facts
        self.vms: dict[VmId, FakeVm] = {}
        self.notice: Notice | msgspec.UnsetType | None = None
        self.acknowledged: list[str] = []
        self.reader_count = 0
        self.exec_input: dict[str, asyncio.Queue[tuple[bytes, bool]]] = {}
        self.welcome: Welcome | None = None
        self._channel: Channel | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def name(self) -> HostName:
        """The host's name."""
        return self.facts.name

    @property
    def memory_free_bytes(self) -> int:
        """What a new VM may take."""
        return self.facts.memory_bytes - sum(vm.request.memory_bytes for vm in self.vms.values() if not vm.state.is_terminal)

    async def connect(self, connect: Connect, report_every_s: float = 1.0) -> None:
        """Dial, introduce, and report from then on."""
        channel = self._channel = await connect(self.handle)
        running = asyncio.get_running_loop().create_task(channel.run())
        self._tasks.append(running)
        hello = Hello(PROTOCOL_VERSION, VERSION, self.facts)
        self.welcome = await channel.call(hello, timeout_s=5)
        await self.report()
        self._tasks.append(asyncio.get_running_loop().create_task(self._report_for_ever(report_every_s)))

    async def disconnect(self) -> None:
        """The connection ends; the host's VMs go on."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    async def report(self) -> None:
        """Report now."""
        if self._channel is not None and self.welcome is not None:
            vms = tuple(vm.observation() for vm in self.vms.values())
            with contextlib.suppress(ArchitectError):
                await self._channel.note(HostReport(self.name, self.memory_free_bytes, vms, self.notice))

    async def end_vm(self, vm: VmId, state: VmState, exit_code: int | None = None) -> None:
        """The VM ends by itself."""
        self.vms[vm].state, self.vms[vm].exit_code = state, exit_code
        self.vms[vm].touch()
        await self.report()

    async def print(self, vm: VmId, text: bytes) -> None:
        """The VM prints."""
        self.vms[vm].log += text
        self.vms[vm].touch()

    async def handle(self, message: Any, body: bytes, call: Call | None) -> Any:
        """Serve the control plane."""
        assert call is not None
        self.world.requests.append(message)
        match message:
            case RunVm(request):
                return await self._run(request, call)
            case StopVm(vm):
                return await self._stop(vm)
            case RemoveVm(vm, force):
                return await self._remove(vm, force)
            case MigrateVm():
                return await self._migrate(message, call)
            case GiveUpMove(migration, _, reason):
                await self.world.give_up_move(migration, reason)
                return Done()
            case ReadLog(vm, offset, follow):
                self.reader_count += 1
                try:
                    return await self._read_log(vm, offset, follow, call)
                finally:
                    self.reader_count -= 1
            case ExecStart():
                return await self._exec(message, call)
            case ExecInput(_, session, end):
                await self.exec_input[session].put((body, end))
                return Done()
            case ReadClock():
                return ClockIs(asyncio.get_running_loop().time() + FAKE_CLOCK_AHEAD_S)
            case SourceGone():
                return Done()
            case AcknowledgeNotice(notice):
                self.acknowledged.append(notice)
                return Done()
        raise NotFoundError(f"request {type(message).__name__}", "is not served", "report this as a defect")

    async def _run(self, request: VmRequest, call: Call) -> VmStatus:
        if self.world.refuse_run is not None:
            raise self.world.refuse_run
        vm = self.vms.get(request.id)
        if vm is None:
            vm = self.vms[request.id] = FakeVm(request, term=1)
            await self.report()
        await call.item(Progress("reading the image"))
        if self.world.run_gate is not None:
            await self.world.run_gate.wait()
        if vm.state is VmState.CREATING:
            vm.state = VmState.RUNNING
            vm.log += f"{request.name} says hello\n".encode()
            vm.touch()
        await self.report()
        return VmStatus(vm.observation())

    async def _stop(self, vm: VmId) -> VmStatus:
        if vm not in self.vms:
            raise NotFoundError(f"vm {vm}", f"is not on host {self.name}", "look where it is")
        if not self.vms[vm].state.is_terminal:
            await self.end_vm(vm, VmState.STOPPED, 143)
        return VmStatus(self.vms[vm].observation())

    async def _remove(self, vm: VmId, force: bool) -> Done:
        if vm in self.vms:
            if not self.vms[vm].state.is_terminal and not force:
                raise ConflictError(f"vm {vm}", "runs", "stop it first")
            self.vms.pop(vm).touch()
            await self.report()
        return Done()

    async def _migrate(self, request: MigrateVm, call: Call) -> MigrationProgress:
        move = self.world.start_move(request, self)
        while not move.report.state.is_terminal:
            changed = move.changed
            await call.item(MigrationProgress(move.report))
            await changed.wait()
        if move.error is not None:
            raise move.error
        return MigrationProgress(move.report)

    async def _read_log(self, vm: VmId, offset: int, follow: bool, call: Call) -> Done:
        if vm not in self.vms:
            raise NotFoundError(f"vm {vm}", f"is not on host {self.name}", "look where it is")
        while (fake := self.vms.get(vm)) is not None:
            changed = fake.changed
            start = max(offset, fake.log_start)
            if text := bytes(fake.log[start:]):
                await call.item(LogData(start), text)
                offset = start + len(text)
            elif not follow or fake.state.is_terminal:
                break
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.2):
                        await changed.wait()
        return Done()

    async def _exec(self, start: ExecStart, call: Call) -> ExecExit:
        """`cat` echoes its input; `exit N` ends so; anything else prints its words on both streams."""
        if start.vm not in self.vms:
            raise NotFoundError(f"vm {start.vm}", f"is not on host {self.name}", "look where it is")
        queue: asyncio.Queue[tuple[bytes, bool]] = asyncio.Queue()
        self.exec_input[start.session] = queue
        try:
            if start.args[0] == "exit":
                return ExecExit(int(start.args[1]))
            if start.args[0] == "cat":
                await call.item(ExecOutput(1), b"")
                async for data in _until_end(queue):
                    await call.item(ExecOutput(1), data)
                return ExecExit(0)
            await call.item(ExecOutput(1), " ".join(start.args).encode() + b"\n")
            await call.item(ExecOutput(2), b"and an error\n")
            return ExecExit(0)
        finally:
            del self.exec_input[start.session]

    async def _report_for_ever(self, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            await self.report()


async def _until_end(queue: asyncio.Queue[tuple[bytes, bool]]) -> AsyncIterator[bytes]:
    while True:
        data, is_end = await queue.get()
        if data:
            yield data
        if is_end:
            return
