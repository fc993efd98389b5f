"""The target of one handover: serves the source's requests for one VM, performs what the engine decides.

Requests before the cut are served one at a time. The cut starts the takeover, a task of its own: neither the end of the
connection nor a cancelled request can stop it between the ownership record and `cont`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable

import msgspec

from architect.errors import ArchitectError, ConflictError, HandoverError, PeerError, UnavailableError, described, remote_error
from architect.migration.action_bounds import target_bound_s
from architect.migration.awaited import late
from architect.migration.ended_handover import EndedHandover
from architect.migration.handover_plan import HandoverLimits
from architect.migration.ports import MIRROR_TUNNEL, POSTCOPY_TUNNEL
from architect.migration.source_watch import SourceWatch
from architect.migration.span_recorder import SpanRecorder
from architect.migration.target_claim import TargetClaim
from architect.migration.target_engine import (
    AbortAsked,
    CutArrived,
    Failed,
    Held,
    NeverRan,
    Performed,
    Started,
    TargetAction,
    TargetEvent,
    TargetState,
    TargetStep,
    actions_of,
    advance,
    delay_s_of,
)
from architect.migration.target_greeting import TargetGreeting
from architect.migration.target_ports import MemoryListener, NeverRanError, TargetHostPort, TargetPorts
from architect.model.handover_span import GUEST_RUNS, Side
from architect.model.ids import HostName
from architect.runtime.clock import Clock
from architect.wire.migration_messages import Committed, Cut, Prepare, Released, TargetStatus


class SessionSetting(msgspec.Struct, frozen=True):
    """What a session works with. `address` is this host's on the underlay; `writer` marks this session's ownership record.

    `recovers`: the agent was restarted and found the machine halted; the session asks the log instead of claiming the VM.
    """

    host: HostName
    address: str
    ports: TargetPorts
    agent: TargetHostPort
    clock: Clock
    limits: HandoverLimits
    writer: str
    recovers: bool = False


class TargetSession:
    """One VM that comes. The service that owns it runs `take_over` and `undo` as tasks of its own."""

    def __init__(self, request: Prepare, setting: SessionSetting) -> None:
        self.request = request
        self._setting = setting
        self._ports = setting.ports
        self._state = TargetState(request, setting.host, setting.limits)
        self._lock = asyncio.Lock()
        self._device_state = b""
        self._log_tail = b""
        self._ended_by_itself = ""
        self._resume_time_s = 0.0
        self._resumed_at_s = 0.0
        self._spans = SpanRecorder(setting.clock, Side.TARGET)
        self._heard_at_s = setting.clock.monotonic_s()
        self._answered = asyncio.Event()
        self._asked_to_abort = asyncio.Event()
        self._claimed = asyncio.Event()
        self._ended = asyncio.Event()
        self._over = asyncio.Event()
        self._greeting: asyncio.Task[None] | None = None
        ports, clock, limits, source = setting.ports, setting.clock, setting.limits, request.source.address
        self._greeter = TargetGreeting(ports, clock, limits, self._spans, setting.address, source)
        self._claim = TargetClaim(request, setting.host, ports, setting.writer, limits, recovers=setting.recovers)
        tell = functools.partial(setting.agent.waits, request.spec.id)
        self.source_watch = SourceWatch(self._thing, request.source.name, ports.memory, clock, limits, tell)
        self._table = self._make_table()

    @property
    def state(self) -> TargetState:
        """Where it stands."""
        return self._state

    @property
    def silent_s(self) -> float:
        """How long nothing was heard from the source."""
        return self._setting.clock.monotonic_s() - self._heard_at_s

    def remains(self) -> EndedHandover:
        """What is to be kept of it once it is over."""
        vm, source, state = self.request.spec.id, self.request.source.name, self._state
        return EndedHandover(vm, source, state.step, self.status(), state.owns, self._spans.news())

    def heard(self) -> None:
        """The source has asked something."""
        self._heard_at_s = self._setting.clock.monotonic_s()

    def status(self) -> TargetStatus:
        """How it stands, for the source."""
        return TargetStatus(self._state.outside, self._state.reason, self._resume_time_s, self._ended_by_itself)

    async def base_part(self, offset: int, data: bytes) -> None:
        """Store a part of the base disk."""
        async with self._lock:
            self._expect(TargetStep.RESERVED)
            base = self.request.spec.base
            if offset + len(data) > base.size_bytes:
                raise PeerError(self._thing, "more of the base disk than it has", "check the source's version")
            await self._ports.bases.write(base.digest, base.size_bytes, offset, data)

    async def start(self) -> MemoryListener:
        """Start the machine, halted; it listens for memory and disk."""
        await self._pass_gate(TargetStep.RESERVED)
        async with self._lock:
            self._expect(TargetStep.RESERVED)
            try:
                async with asyncio.timeout(self._setting.limits.start_timeout_s):
                    with self._spans.span("start-machine"):
                        export_path = await self._ports.machine.start_incoming(self.request.spec)
                    with self._spans.span("open-memory"):
                        listener = await self._ports.memory.open_target(self.request.migration)
                        await self._ports.memory.tunnel_connect(MIRROR_TUNNEL, export_path)
            except TimeoutError as error:
                cause = f"its machine on host {self._setting.host} did not start in {self._setting.limits.start_timeout_s:g} s"
                raise UnavailableError(self._thing, cause, "choose another target host") from error
            self._state = advance(self._state, Started())
            return listener

    async def log_part(self, offset: int, data: bytes) -> None:
        """Store a part of the VM's output."""
        async with self._lock:
            self._expect(TargetStep.STARTED)
            await self._ports.log.append(offset, data)

    async def hold(self) -> None:
        """Let packets wait in the tap; the cut is near."""
        async with self._lock:
            self._expect(TargetStep.STARTED)
            self._state = advance(self._state, Held())
            await self._ports.flows.hold()
            await self._claim.prepare()

    async def accept_cut(self, cut: Cut, body: bytes) -> None:
        """Take the VM's last state in; `take_over` is next."""
        await self._pass_gate(TargetStep.STARTED)
        async with self._lock:
            self._expect(TargetStep.STARTED)
            if not 0 < cut.device_state_bytes <= len(body):
                raise PeerError(self._thing, "a cut without device state", "check the source's version")
            self._device_state, self._log_tail = body[: cut.device_state_bytes], body[cut.device_state_bytes :]
            self._state = advance(self._state, CutArrived(cut))

    async def take_over(self) -> None:
        """Load, verify, claim, resume, fill; or undo. Ends in a terminal step; raises nothing."""
        async with asyncio.TaskGroup() as group:
            while not self._state.step.is_terminal:
                if self._state.step is TargetStep.UNDO:
                    self._answered.set()  # the source lets the VM run while we undo
                    await self.stop_greeting()
                await self._step()
                if self._state.step in (TargetStep.FILL, TargetStep.RUNNING) and self._greeting is None:
                    assert self._state.record is not None
                    self._setting.agent.taken_over(self.request.migration, self.request.spec, self._state.record.term)
                    self._answered.set()
                    self._claimed.set()
                    self._greeting = group.create_task(self._greeter.greet(self._state.record.term))
                    group.create_task(self._greeter.watch_guest(self._resumed_at_s))
            self._conclude()
        self._over.set()

    async def abort(self, reason: str) -> None:
        """Give up if it is not too late; returns when it is known how it ended, or in `POSTCOPY` at once."""
        self._asked_to_abort.set()
        await self._look_what_ended()  # before undoing ends the rest
        reason = self._with_shortage(reason)
        if self._state.step in (TargetStep.RESERVED, TargetStep.STARTED):
            async with self._lock:
                if self._state.step in (TargetStep.RESERVED, TargetStep.STARTED):
                    self._state = advance(self._state, AbortAsked(reason))
                    await self.take_over()
                    return
        if not self._state.step.is_terminal:
            self._state = advance(self._state, AbortAsked(reason)) if self._state.may_abort else self._state
        await self.wait_claimed()

    async def recover(self) -> None:
        """Take up a machine that was found halted: claim nothing, ask the log, then resume and fill, or undo."""
        assert self._setting.recovers
        unknown = Cut(self.request.migration, "", 1, 0, postcopy=True)
        self._state = msgspec.structs.replace(self._state, step=TargetStep.CLAIM, cut=unknown, holds=True)
        await self.take_over()

    async def wait_claimed(self) -> None:
        """Until the VM runs here, or never will."""
        await self._claimed.wait()

    async def wait_ended(self) -> None:
        """Until the handover has ended here."""
        await self._ended.wait()

    async def wait_over(self) -> None:
        """Until nothing is done here any more: it has ended, and the VM was greeted or moves on."""
        await self._over.wait()

    async def committed(self) -> Committed:
        """The answer to the cut.

        Raises:
            HandoverError, LostError, …: the VM does not run here, and why.
        """
        await self._answered.wait()
        state = self._state
        if state.code:
            raise remote_error(state.code, self._thing, state.reason, "see the events of both hosts")
        assert state.record is not None
        return Committed(state.record.term, self._resume_time_s, self._spans.news())

    async def release(self) -> Released:
        """The source forwards nothing more; the greeting tells the edge. Returns when the guest was seen, or late."""
        if not self._state.owns:
            raise ConflictError(self._thing, "was not taken over", "ask how the handover stands")
        await self._greeter.release()
        return Released(self._spans.news())

    async def stop_greeting(self) -> None:
        """The VM is about to move on: steer nothing for it any more."""
        if self._greeting is not None:
            self._greeting.cancel()
            await asyncio.wait([self._greeting])

    async def _step(self) -> None:
        waiting = self._state
        if delay_s := delay_s_of(waiting):
            await self._setting.clock.sleep(delay_s)
        await self._pass_gate(waiting.step)
        if self._state is not waiting:
            return  # an abort came meanwhile
        state = self._state
        results: list[TargetEvent | None] = []

        async def one(action: TargetAction) -> None:
            with self._spans.span(action.value, state.step.value):
                results.append(await self._perform(action))

        try:
            with self._spans.span(state.step.value):
                async with asyncio.TaskGroup() as outer:
                    watching = outer.create_task(self.source_watch.run()) if state.needs_source else None
                    async with asyncio.TaskGroup() as group:
                        for action in actions_of(state):
                            group.create_task(one(action))
                    if watching is not None:
                        watching.cancel()
        except* ArchitectError as errors:
            await self._look_what_ended()
            failed = Failed.of(errors)
            results = [Failed(failed.code, self._ended_by_itself or self._with_shortage(failed.reason))]
        except* Exception as errors:
            defect = described(errors, self._thing)
            results = [Failed(defect.code, self._with_shortage(f"{defect.thing}: {defect.cause}"))]
        # An abort that came meanwhile has moved the state on already; what was performed is undone with the rest.
        if self._state is state:
            self._state = advance(state, next((event for event in results if event is not None), Performed()))

    async def _look_what_ended(self) -> None:
        if self._ended_by_itself or self._state.step is TargetStep.UNDO:
            return  # what undoing ends has not ended by itself
        if ended := await self._ports.machine.what_ended():
            self._ended_by_itself = self._with_shortage(ended)

    async def _pass_gate(self, step: TargetStep) -> None:
        if self._ports.gate is not None:
            await self._ports.gate.wait(f"target-{step.value}")

    async def _perform(self, action: TargetAction) -> TargetEvent | None:
        bound_s = target_bound_s(action, self._state, self._setting.limits)
        try:
            async with asyncio.timeout(bound_s):
                return await self._table[action]()
        except TimeoutError as error:
            name, source = self.request.spec.request.name, self.request.source.name
            raise late(action, bound_s, name, self._setting.host, source) from error

    def _make_table(self) -> dict[TargetAction, Callable[[], Awaitable[TargetEvent | None]]]:
        machine, memory = self._ports.machine, self._ports.memory
        table: dict[TargetAction, Callable[[], Awaitable[TargetEvent | None]]] = {
            TargetAction.APPLY_CUT: self._apply_cut,
            TargetAction.STOP_EXPORT: machine.stop_export,
            TargetAction.APPEND_LOG: self._append_log,
            TargetAction.FULL_HASH: self._compare_hash,
            TargetAction.ATTACH_DISK: self._attach_disk,
            TargetAction.LOAD: lambda: machine.load_device_state(self._device_state),
            TargetAction.CREATE_RECORD: self._create_record,
            TargetAction.GIVE_BACK: self._claim.give_back,
            TargetAction.RESUME: self._resume,
            TargetAction.WAIT_MEMORY: memory.wait_all_present,
            TargetAction.WAIT_DISK: machine.wait_disk_present,
            TargetAction.RELAY: self._relay,
            TargetAction.ABORT_MEMORY: memory.abort_target,
            TargetAction.DESTROY: machine.destroy,
        }
        assert set(table) == set(TargetAction)
        return table

    async def _apply_cut(self) -> None:
        cut = self._state.cut
        assert cut is not None
        self._spans.extend(await self._ports.memory.apply_cut(cut.root, cut.postcopy))

    async def _append_log(self) -> None:
        cut = self._state.cut
        assert cut is not None
        if self._log_tail:
            await self._ports.log.append(cut.log_offset, self._log_tail)

    async def _compare_hash(self) -> None:
        cut = self._state.cut
        assert cut is not None
        if (found := await self._ports.memory.full_hash()) != cut.full_hash:
            cause = f"its memory here has hash {found[:16]}, at the source {cut.full_hash[:16]}"
            raise HandoverError(self._thing, cause, "report this as a defect")

    async def _attach_disk(self) -> None:
        path = await self._ports.memory.tunnel_listen(POSTCOPY_TUNNEL)
        await self._ports.machine.attach_postcopy_disk(path)

    async def _create_record(self) -> TargetEvent:
        known = await self._claim.create()
        if known.record.host != self._state.host:
            await self._look_what_ended()  # a dead machine claims nothing
        return msgspec.structs.replace(known, why=self._ended_by_itself)

    async def _resume(self) -> TargetEvent | None:
        clock = self._setting.clock
        asked_at_s = clock.monotonic_s()
        try:
            self._resume_time_s = await self._ports.machine.resume()
        except NeverRanError as error:
            return NeverRan(f"{error.thing}: {error.cause}")
        now_s = clock.monotonic_s()
        self._resumed_at_s = now_s - min(max(clock.wall_s() - self._resume_time_s, 0.0), now_s - asked_at_s)
        self._spans.add(GUEST_RUNS, self._resumed_at_s, now_s, TargetStep.RESUME.value)
        return None

    async def _relay(self) -> None:
        """What waits here goes to the source, once that has heard how the move ended and takes packets again."""
        if self._state.cut is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._setting.limits.call_timeout_s):
                    await self._asked_to_abort.wait()
        await self._ports.flows.relay(self.request.source.address)

    def _with_shortage(self, reason: str) -> str:
        """The reason, with what this host lacks: a full disk shows itself as a process that has ended, a mirror that has."""
        shortage = self._setting.agent.shortage()
        return f"{reason}; {shortage}" if shortage and shortage not in reason else reason

    def _conclude(self) -> None:
        state, agent = self._state, self._setting.agent
        match state.step:
            case TargetStep.RUNNING:
                agent.filled(self.request.spec.id)
            case TargetStep.LOST:
                agent.lost(self.request.spec.id, state.reason)
            case _:
                agent.abandoned(self.request.spec.id, self.request.source.name, state.reason)
        self._device_state = self._log_tail = b""
        self._answered.set()
        self._claimed.set()
        self._ended.set()

    def _expect(self, step: TargetStep) -> None:
        if self._state.step is not step:
            cause = f"is {self._state.step.value} at the target, not {step.value}"
            raise ConflictError(self._thing, cause, "ask how the handover stands")

    @property
    def _thing(self) -> str:
        return f"vm {self.request.spec.request.name}"
