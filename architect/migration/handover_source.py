"""The source side of an agent: the handovers that leave this host, at most one per VM.

A handover belongs to this service, not to the request that asked for it: a control plane that restarts and asks again by the same
id joins it, or is told how it ended, until the VM's next move from here, which is ordered by one who knows. After the agent's own
death `recover` takes up what `SourceHostPort.keep` had remembered.
"""

from __future__ import annotations

import asyncio
import contextlib

from architect.errors import ArchitectError, ConflictError, HandoverError, remote_error
from architect.migration.found_vm import FoundVerdict, resolve_found_running
from architect.migration.handover_driver import HandoverDriver, HandoverOutcome, OnReport
from architect.migration.handover_plan import HandoverLimits
from architect.migration.ports import EdgePort
from architect.migration.source_engine import SourceState, recovered
from architect.migration.source_ports import Handover, SourceFlowPort, SourceHostPort
from architect.migration.steering import steer_until_done
from architect.model.handover_state import HandoverState
from architect.model.ids import MigrationId, VmId
from architect.model.ownership import OwnershipRecord
from architect.runtime.clock import Clock, Entropy
from architect.wire.agent_messages import MigrateVm, MigrationReport

ENDED_KEPT_MAX = 128
UNWANTED_KEPT_MAX = 128


class _Running:
    """A handover that runs, and who wants to hear of it."""

    def __init__(self, vm: VmId) -> None:
        self.vm = vm
        self.listeners: list[OnReport] = []
        self.latest: MigrationReport | None = None
        self.task: asyncio.Task[HandoverOutcome] | None = None
        self.driver: HandoverDriver | None = None
        self.unwanted = ""

    def give_up(self, reason: str) -> None:
        self.unwanted = reason
        if self.driver is not None:
            self.driver.give_up(reason)

    def tell(self, report: MigrationReport) -> None:
        self.latest = report
        for listener in self.listeners:
            listener(report)


class HandoverSource:
    """All handovers that leave this host."""

    def __init__(self, agent: SourceHostPort, clock: Clock, entropy: Entropy, limits: HandoverLimits | None = None) -> None:
        self._agent = agent
        self._clock = clock
        self._entropy = entropy
        self._limits = limits if limits is not None else HandoverLimits()
        self._running: dict[MigrationId, _Running] = {}
        self._opening: set[VmId] = set()
        self._ended: dict[VmId, MigrationReport] = {}
        self._unwanted: dict[MigrationId, str] = {}
        self._reclaims: dict[VmId, asyncio.Task[None]] = {}
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Own the handovers' tasks until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            await asyncio.Event().wait()

    def report(self, vm: VmId) -> MigrationReport | None:
        """How the VM's running handover stands; None if none runs."""
        return next((running.latest for running in self._running.values() if running.vm == vm), None)

    def is_moving(self, vm: VmId) -> bool:
        """Whether a handover of the VM runs: nobody else may pause, checkpoint, stop or destroy it then."""
        return vm in self._opening or any(running.vm == vm for running in self._running.values())

    async def migrate(self, request: MigrateVm, on_report: OnReport | None = None) -> MigrationReport:
        """Move a VM, or join its running handover of that id; the report of how it ended (done, failed or lost).

        Who joins brings the deadline as it is now: the running move goes by it from then on. Cancelled, it stops waiting; the
        handover goes on.

        Raises:
            ConflictError: another handover of the VM runs.
            ArchitectError: the host could not open the handover; nothing has changed.
        """
        if (ended := self._ended.get(request.vm)) is not None and ended.id == request.migration:
            return ended
        running = self._running.get(request.migration)
        if running is None:
            running = await self._begin(request)
        elif running.driver is not None:
            deadline_s = request.deadline_s
            running.driver.hurry(None if deadline_s is None else self._clock.monotonic_s() + deadline_s)
        if on_report is not None:
            running.listeners.append(on_report)
        try:
            assert running.task is not None
            return (await asyncio.shield(running.task)).report
        finally:
            if on_report is not None:
                running.listeners.remove(on_report)

    def give_up(self, migration: MigrationId, reason: str) -> None:
        """Undo that handover, unless it is past its cut; one that is not known (yet) is refused from now on. Idempotent."""
        if (running := self._running.get(migration)) is not None:
            running.give_up(reason)
        elif all(report.id != migration for report in self._ended.values()):
            self._unwanted[migration] = reason
            while len(self._unwanted) > UNWANTED_KEPT_MAX:
                self._unwanted.pop(next(iter(self._unwanted)))

    async def recover(self, handover: Handover, *, is_running: bool) -> HandoverOutcome:
        """Take up a handover that the agent's predecessor had begun, to its end.

        :param is_running: whether the VM's machine was found running; it was found paused (or not at all) otherwise.
        """
        return await asyncio.shield(self.take_up(handover, is_running=is_running))

    def take_up(self, handover: Handover, *, is_running: bool) -> asyncio.Task[HandoverOutcome]:
        """As `recover`, in a task of this service: from this moment on the VM counts as moving."""
        assert self._group is not None, "run() owns the tasks"
        running = self._running[handover.plan.migration] = _Running(handover.plan.vm)
        running.task = self._group.create_task(self._recover(handover, running, is_running))
        return running.task

    def reclaim(self, vm: VmId, term: int, address: str, flows: SourceFlowPort, edge: EdgePort) -> None:
        """Make sure that the VM's packets come here (`address`), and that no other host may speak for it, however long it takes.

        Done after a failed handover; an agent that starts does it for each VM that it finds running, and that no handover brings
        or takes: its predecessor may have died before it had.
        """

        async def claim() -> None:
            with contextlib.suppress(ArchitectError, TimeoutError):
                async with asyncio.timeout(self._limits.call_timeout_s):
                    await flows.set_local()
            await steer_until_done(edge, term, address, "", self._clock, self._limits)

        assert self._group is not None, "run() owns the tasks"
        self._reclaims[vm] = self._group.create_task(claim())

    async def let_go(self, vm: VmId) -> None:
        """The VM leaves or ends: claim nothing for it any more."""
        if (reclaiming := self._reclaims.pop(vm, None)) is not None:
            reclaiming.cancel()
            await asyncio.wait([reclaiming])

    async def _recover(self, handover: Handover, running: _Running, is_running: bool) -> HandoverOutcome:
        plan, ports = handover.plan, handover.ports
        latest = await self._known_record(handover)
        newer = latest if latest is not None and latest.term > plan.term else None
        if is_running and resolve_found_running(plan.host, latest) is FoundVerdict.DESTROY:
            is_running = False
        is_serving = False
        with contextlib.suppress(ArchitectError, TimeoutError):
            async with asyncio.timeout(plan.limits.call_timeout_s):
                is_serving = await ports.memory.is_serving()
        return await self._drive(handover, running, recovered(plan, is_running=is_running, is_serving=is_serving, record=newer))

    async def _begin(self, request: MigrateVm) -> _Running:
        if self.is_moving(request.vm):
            raise ConflictError(f"vm {request.vm}", "is being moved already", "wait for the end of that move")
        if (reason := self._unwanted.get(request.migration)) is not None:
            raise ConflictError(f"vm {request.vm}", reason, "move it again if you want it elsewhere")
        self._opening.add(request.vm)
        try:
            await self.let_go(request.vm)
            handover = await self._agent.open_handover(request)
            self._agent.keep(handover.plan)
            assert self._group is not None, "run() owns the tasks"
            running = self._running[handover.plan.migration] = _Running(request.vm)
            running.unwanted = self._unwanted.get(request.migration, "")
            running.task = self._group.create_task(self._drive(handover, running, None))
            return running
        finally:
            self._opening.discard(request.vm)

    async def _drive(self, handover: Handover, running: _Running, state: SourceState | None) -> HandoverOutcome:
        plan = handover.plan
        running.driver = HandoverDriver(handover, self._clock, self._entropy, running.tell, state)
        if running.unwanted:
            running.driver.give_up(running.unwanted)
        outcome = await running.driver.run()
        self._running.pop(plan.migration, None)
        self._ended.pop(plan.vm, None)
        self._ended[plan.vm] = outcome.report
        while len(self._ended) > ENDED_KEPT_MAX:
            self._ended.pop(next(iter(self._ended)))
        self._agent.ended(outcome.report, outcome.term, outcome.keeps)
        self._agent.forget(plan)
        if outcome.keeps:
            self.reclaim(plan.vm, outcome.term, plan.source.address, handover.ports.flows, handover.ports.edge)
        running.tell(outcome.report)
        return outcome

    async def _known_record(self, handover: Handover) -> OwnershipRecord | None:
        """The VM's newest record, asked for until it is known."""
        attempt = 0
        while True:
            try:
                async with asyncio.timeout(self._limits.record_timeout_s):
                    return await handover.ports.ownership.latest(handover.plan.vm)
            except (ArchitectError, TimeoutError):
                attempt += 1
                await self._clock.sleep(min(self._limits.back_off_s * 2.0 ** min(attempt, 16), self._limits.back_off_max_s))


def error_of_report(report: MigrationReport, code: str = HandoverError.code) -> ArchitectError | None:
    """The error that a terminal report stands for; None if the move was done."""
    if report.state is HandoverState.DONE:
        return None
    word = "lost" if report.state is HandoverState.LOST else code
    return remote_error(word, f"vm {report.vm}", report.reason, "see `architect events`, then try again or choose another host")
