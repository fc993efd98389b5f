"""What the source's actions do: each calls ports or the peer, bounded in time, and returns the event that decides, if any."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from architect.errors import ArchitectError, HandoverError, LostError
from architect.migration.action_bounds import action_bound_s, verify_bound_s
from architect.migration.awaited import late
from architect.migration.copy_looks import CopyLooks
from architect.migration.found_vm import abort_record
from architect.migration.handover_plan import HandoverPlan, MemoryCut, MemoryProgress, MirrorProgress, RoundStats
from architect.migration.handover_report import HandoverFigures
from architect.migration.link_rate import LinkSample
from architect.migration.peer_link import SILENCES, PeerLink
from architect.migration.ports import MIRROR_TUNNEL as MIRROR_TUNNEL
from architect.migration.ports import POSTCOPY_TUNNEL as POSTCOPY_TUNNEL
from architect.migration.ports import decided_record
from architect.migration.source_engine import (
    BaseMissing,
    Measured,
    RecordKnown,
    SourceEvent,
    SourceState,
    TargetIs,
    TargetSaid,
    may_resume,
)
from architect.migration.source_parts import SourceParts
from architect.migration.source_ports import SourcePorts
from architect.migration.source_steps import Action, Effect, SourceStep
from architect.model.handover_state import HandoverState
from architect.model.ownership import RecordKind
from architect.runtime.clock import Clock
from architect.wire.agent_messages import MoveDecision
from architect.wire.framing import BODY_BYTES_MAX
from architect.wire.migration_messages import (
    Abort,
    Accepted,
    AskStatus,
    AwaitFilled,
    Committed,
    Cut,
    Hold,
    Prepare,
    Prepared,
    Release,
    Released,
    Start,
    Started,
    TargetStatus,
)


class SourceActions:
    """Performs the actions of one handover, and keeps what passes from one to the next. `deadline_at_s` may change while it does;
    `on_progress` is called when a long action has news; `ended_at_target`: what the target says has ended there by itself."""

    def __init__(
        self, plan: HandoverPlan, ports: SourcePorts, link: PeerLink, clock: Clock, figures: HandoverFigures, writer: str
    ) -> None:
        self._plan = plan
        self._ports = ports
        self._link = link
        self._clock = clock
        self._figures = figures
        self._writer = writer
        self._target_address = plan.target.address
        self._base_bytes = 0
        self._started: Started | None = None
        self._mirror: MirrorProgress | None = None
        self._round_bytes = self._round_saved = 0
        self._parts = SourceParts(plan, ports, link, clock, figures)
        self._device_state = b""
        self._cut: MemoryCut | None = None
        self._full_hash = ""
        self._is_limited = plan.bandwidth is not None
        self._table = self._make_table()
        self.deadline_at_s = plan.deadline_at_s
        self.ended_at_target = ""
        self.on_progress: Callable[[], None] = lambda: None

    async def perform(self, action: Action, state: SourceState) -> SourceEvent | None:
        """Perform one action; None means that it simply succeeded.

        Raises:
            ArchitectError: it failed or was late.
        """
        bound_s = action_bound_s(action, state.step, self._plan)
        try:
            async with asyncio.timeout(bound_s):
                return await self._table[action](state)
        except TimeoutError as error:
            raise late(action, bound_s, self._plan.spec.request.name, self._plan.host, self._plan.target.name) from error

    def _make_table(self) -> dict[Action, Callable[[SourceState], Awaitable[SourceEvent | None]]]:
        machine, memory, flows = self._ports.machine, self._ports.memory, self._ports.flows
        parts, limits = self._parts, self._plan.limits
        table: dict[Action, Callable[[SourceState], Awaitable[SourceEvent | None]]] = {
            Action.CONNECT: lambda _: self._link.connect(),
            Action.COMPARE_CLOCKS: self._compare_clocks,
            Action.PREPARE: self._prepare,
            Action.SEND_BASE: lambda _: parts.send_base(self._base_bytes),
            Action.START_TARGET: self._start_target,
            Action.OPEN_MEMORY: self._open_memory,
            Action.BULK: self._bulk,
            Action.START_MIRROR: self._start_mirror,
            Action.SEND_LOG: lambda _: parts.send_log(),
            Action.ROUND: self._round,
            Action.POLL_MIRROR: self._poll_mirror,
            Action.HOOK_SUSPEND: lambda _: machine.run_hook("before-suspend"),
            Action.HOLD: lambda _: self._accepted(Hold(self._plan.migration)),
            Action.STEER: self._steer,
            Action.SETTLE: lambda _: self._ports.edge.settle(),
            Action.FORWARD: lambda _: flows.set_forward(self._target_address),
            Action.DRAIN: lambda _: flows.wait_drained(limits.drain_timeout_s),
            Action.PAUSE: self._pause,
            Action.RELAY_REST: lambda _: flows.relay_rest(self._target_address),
            Action.END_DISK: self._end_disk,
            Action.SAVE_STATE: self._save_state,
            Action.CUT_MEMORY: self._cut_memory,
            Action.FULL_HASH: self._hash_memory,
            Action.SEND_CUT: self._send_cut,
            Action.WRITE_ABORT: self._write_abort,
            Action.WAIT_QUIET: lambda _: flows.wait_quiet(limits.quiet_timeout_s),
            Action.SERVE_MEMORY: self._serve_memory,
            Action.AWAIT_FILLED: lambda _: self._status(AwaitFilled(self._plan.migration), limits.fill_timeout_s),
            Action.ASK_STATUS: self._ask_status,
            Action.ASK_WHETHER_RUNNING: self._ask_status,
            Action.RELEASE: self._release,
            Action.DESTROY: lambda _: machine.destroy(),
            Action.SET_LOCAL: lambda _: flows.set_local(),
            Action.RESUME: self._resume,
            Action.SYNC_CLOCK: lambda _: machine.sync_clock(),
            Action.HOOK_RESUME: lambda _: machine.run_hook("after-resume"),
            Action.STEER_BACK: lambda state: self._steer_back(state, self._target_address),
            Action.ABORT_TARGET: self._abort_target,
            Action.STEER_ALONE: lambda state: self._steer_back(state, ""),
            Action.CANCEL_MIRROR: lambda _: machine.cancel_mirror(),
            Action.ABORT_MEMORY: lambda _: memory.abort_source(),
        }
        assert set(table) == set(Action)
        return table

    async def _compare_clocks(self, _: SourceState) -> None:
        self._figures.target_clock = await self._link.compare_clocks()

    async def _accepted(self, value: Hold) -> None:
        await self._link.ask(value, Accepted)

    async def _prepare(self, _: SourceState) -> SourceEvent | None:
        plan = self._plan
        question = Prepare(
            plan.migration, plan.spec, plan.term, plan.source, plan.mode, plan.verify, plan.limits.memory_streams, plan.disk_bytes
        )
        prepared = await self._link.ask(question, Prepared, timeout_s=plan.limits.machine_timeout_s)
        self._target_address = prepared.address
        self._base_bytes = prepared.base_bytes
        return BaseMissing() if prepared.base_bytes < plan.spec.base.size_bytes else None

    async def _start_target(self, _: SourceState) -> None:
        timeout_s = self._plan.limits.start_timeout_s
        self._started = await self._link.ask(Start(self._plan.migration), Started, timeout_s=timeout_s)

    async def _open_memory(self, _: SourceState) -> None:
        started = self._started
        assert started is not None
        await self._ports.memory.open_source(
            self._plan.migration, started.memory_address, started.memory_port, started.server_name, self._plan.limits.memory_streams
        )
        if self._plan.bandwidth is not None:
            await self._ports.memory.set_bandwidth(self._plan.bandwidth.bytes_per_s)

    async def _lift_limit(self) -> None:
        """Send as fast as the link carries from now on."""
        if self._is_limited:
            await self._ports.memory.set_bandwidth(0)
            self._is_limited = False

    async def _bulk(self, state: SourceState) -> SourceEvent:
        return await self._watched(state, self._ports.memory.bulk)

    async def _round(self, state: SourceState) -> SourceEvent:
        if state.step is not SourceStep.ROUND:
            return self._measured(await self._ports.memory.round())
        return await self._watched(state, self._ports.memory.round)

    async def _watched(self, state: SourceState, copy: Callable[[], Awaitable[RoundStats]]) -> Measured:
        """Copy, and look at it all along: a copy that may not go on (a deadline comes near) is stopped, the rest stays unsent."""
        looks = CopyLooks(state, self._clock, self._ports.memory, self._tell)
        if state.watch.is_unlimited:
            await self._lift_limit()
        async with asyncio.TaskGroup() as group:
            looking = group.create_task(self._look_until_due(state, looks))
            stats = await copy()
            looking.cancel()
        return self._measured(stats, looks.samples, looks.lift)

    async def _look_until_due(self, state: SourceState, looks: CopyLooks) -> None:
        """Look until the copy may not go on, and stop it. That a look fails is no failure of the move: the copy will say so."""
        while True:
            await self._clock.sleep(self._plan.limits.poll_interval_s)
            with contextlib.suppress(ArchitectError, TimeoutError):
                async with asyncio.timeout(self._plan.limits.call_timeout_s):
                    if self._mirror is not None:
                        await self._poll_mirror(state)
                    await looks.look(self._mirror, self.deadline_at_s)
                    if looks.lift is not None:
                        await self._lift_limit()
                    if looks.is_due:
                        await self._ports.memory.stop_round()
                        return

    def _tell(self, progress: MemoryProgress, look: MoveDecision) -> None:
        self._figures.pages_left, self._figures.look = progress.pages_left, look
        self._figures.sent_memory(progress.bytes_sent, progress.bytes_saved)
        self.on_progress()

    def _measured(self, stats: RoundStats, samples: tuple[LinkSample, ...] = (), lift: MoveDecision | None = None) -> Measured:
        self._round_bytes += stats.bytes
        self._round_saved += stats.bytes_saved
        self._figures.sent_memory(self._round_bytes, self._round_saved)
        self._figures.pages_left = stats.dirty_after
        return Measured(stats, self._mirror, samples, lift)

    async def _start_mirror(self, state: SourceState) -> None:
        path = await self._ports.memory.tunnel_listen(MIRROR_TUNNEL)
        await self._ports.machine.start_mirror(path)
        await self._poll_mirror(state)

    async def _poll_mirror(self, _: SourceState) -> None:
        self._mirror = await self._ports.machine.mirror_progress()
        self._figures.sent_disk(self._mirror)

    def latest_mirror(self) -> MirrorProgress | None:
        """The mirror as it was last seen."""
        return self._mirror

    async def _steer(self, state: SourceState) -> None:
        times = await self._ports.edge.steer(self._plan.term, self._target_address, self._plan.source.address)
        self._figures.steered(times, state.step.value)

    async def _pause(self, _: SourceState) -> None:
        self._figures.stop_asked_at_s = self._clock.monotonic_s()
        self._figures.stop_time_s = await self._ports.machine.pause()
        self._figures.stopped_at_s = self._clock.monotonic_s()

    async def _end_disk(self, state: SourceState) -> None:
        machine, memory = self._ports.machine, self._ports.memory
        if state.decision.disk_postcopy:
            await machine.cancel_mirror()
            await memory.tunnel_serve(POSTCOPY_TUNNEL, await machine.freeze_disk())
        else:
            await machine.finish_mirror()

    async def _save_state(self, _: SourceState) -> None:
        self._device_state = await self._ports.machine.save_device_state()

    async def _cut_memory(self, state: SourceState) -> None:
        self._cut = await self._ports.memory.cut(state.decision.postcopy)
        self._figures.spans.extend(self._cut.spans)
        self._figures.sent_memory(self._cut.bytes_sent, self._cut.bytes_saved)
        self._figures.pages_left = self._cut.pages_missing

    async def _hash_memory(self, _: SourceState) -> None:
        begin_s = self._clock.monotonic_s()
        self._full_hash = await self._ports.memory.full_hash()
        self._figures.verify_s += self._clock.monotonic_s() - begin_s

    async def _send_cut(self, state: SourceState) -> None:
        plan, cut, device_state = self._plan, self._cut, self._device_state
        assert cut is not None and Effect.PAUSED in state.effects
        await self._parts.send_log(plan.limits.part_bytes)
        log_offset, tail = await self._parts.next_log(plan.limits.part_bytes)
        if (size := len(device_state) + len(tail)) > BODY_BYTES_MAX:
            raise HandoverError(f"vm {plan.spec.request.name}", f"its device state has {size} bytes", "report this as a defect")
        question = Cut(
            plan.migration, cut.root, len(device_state), log_offset, state.decision.postcopy, state.decision.disk_postcopy,
            self._full_hash,
        )  # fmt: skip
        timeout_s = plan.limits.commit_timeout_s + verify_bound_s(plan)
        asked_at_s = self._clock.monotonic_s()
        answer = await self._link.ask(question, Committed, device_state + tail, timeout_s)
        self._figures.other_bytes += len(device_state) + len(tail)
        self._figures.committed(answer, asked_at_s, bool(self._full_hash))

    async def _write_abort(self, _: SourceState) -> SourceEvent:
        plan = self._plan
        record = abort_record(plan.vm, plan.term + 1, plan.host, self._writer, plan.migration)
        decided = await decided_record(self._ports.ownership, record)
        if decided.kind is RecordKind.RUN and decided.host != plan.host:
            decided = await self._ports.ownership.latest(plan.vm) or decided  # the target may have given the VM back since
        return RecordKnown(decided)

    async def _serve_memory(self, _: SourceState) -> None:
        if not self._is_limited:
            await self._ports.memory.serve_until_done()
        else:
            async with asyncio.TaskGroup() as group:
                hurrying = group.create_task(self._lift_when_hurried())
                await self._ports.memory.serve_until_done()
                hurrying.cancel()
        with contextlib.suppress(ArchitectError):
            progress = await self._ports.memory.progress()
            self._figures.sent_memory(progress.bytes_sent, progress.bytes_saved)

    async def _lift_when_hurried(self) -> None:
        """What is left is all that the VM still needs of this host: with a deadline nothing may hold it back."""
        while self._is_limited:
            if self.deadline_at_s is not None:
                with contextlib.suppress(ArchitectError):
                    await self._lift_limit()
            await self._clock.sleep(self._plan.limits.poll_interval_s)

    async def _status(self, question: AwaitFilled | AskStatus, timeout_s: float) -> SourceEvent:
        status = await self._link.ask(question, TargetStatus, timeout_s=timeout_s)
        if status.state is HandoverState.FAILED:
            # It says that nothing of the VM is there, and yet its record exists.
            raise LostError(f"vm {self._plan.spec.request.name}", status.reason, "see the events of the target host")
        return TargetIs(status.state, status.reason, status.resume_time_s > 0)

    async def _ask_status(self, state: SourceState) -> SourceEvent:
        """How the target stands; where it cannot say, because it has nothing of the VM or does not answer, what the log says.

        Meanwhile what is missing is served: an agent that was started again knows nothing until its QEMU answers, and that may
        wait for a page.
        """
        if state.is_postcopy:
            with contextlib.suppress(ArchitectError, TimeoutError):
                async with asyncio.timeout(self._plan.limits.call_timeout_s):
                    await self._ports.memory.start_serving()
        try:
            await self._link.connect()
            return await self._status(AskStatus(self._plan.migration), self._plan.limits.call_timeout_s)
        except ArchitectError:
            async with asyncio.timeout(self._plan.limits.record_timeout_s):
                latest = await self._ports.ownership.latest(self._plan.vm)
            if latest is None or latest.term <= self._plan.term + 1:
                raise
            return RecordKnown(latest)

    async def _release(self, _: SourceState) -> None:
        await self._link.connect()
        timeout_s = self._plan.limits.call_timeout_s + self._plan.limits.seen_timeout_s
        self._figures.target_did((await self._link.ask(Release(self._plan.migration), Released, timeout_s=timeout_s)).spans)

    async def _resume(self, state: SourceState) -> None:
        assert may_resume(state), "no resume at the source without a record that keeps the VM here"
        await self._ports.machine.resume()

    async def _steer_back(self, state: SourceState, previous: str) -> None:
        term = state.record.term if state.record is not None else self._plan.term
        await self._ports.edge.steer(term, self._plan.source.address, previous)

    async def _abort_target(self, state: SourceState) -> SourceEvent | None:
        """Whatever the target has to say beyond what we know is a part of the reason: its disk may be full."""
        try:
            await self._link.connect()
            status = await self._link.ask(Abort(self._plan.migration, state.reason), TargetStatus)
            self.ended_at_target = status.ended
        except ArchitectError as error:
            has_refused = state.outside is HandoverState.PREPARING and state.code not in SILENCES
            if error.code != "not-found" or not has_refused:
                raise  # who knows nothing of a move that it had taken has only just started, and may take it up yet
            return None
        news = status.reason.removeprefix(state.reason).removeprefix("; ")
        return TargetSaid(news) if news and news not in state.reason else None
