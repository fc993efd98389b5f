"""The driver of one handover at its source: performs what the engine decides, and reports.

It owns every task that it starts, bounds every wait, and decides nothing itself. The connection to the target is its own; ports
are the agent's. While it runs nobody else may pause, resume, checkpoint or destroy the VM.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from architect.errors import ArchitectError, HandoverError, InternalError
from architect.migration.handover_plan import HandoverPlan
from architect.migration.handover_report import HandoverFigures
from architect.migration.peer_link import PeerLink
from architect.migration.source_actions import SourceActions
from architect.migration.source_engine import (
    Failed,
    Measured,
    Performed,
    SourceEvent,
    SourceState,
    actions_of,
    advance,
    begun,
    can_be_given_up,
    delay_s_of,
    given_up,
    hurried,
)
from architect.migration.source_ports import Handover
from architect.migration.source_steps import SIDE_OF, STANDING, TOLERATED, UNTOLD, WATCHED, Action, Effect, SourceStep
from architect.model.handover_span import Side
from architect.runtime.clock import Clock, Entropy
from architect.wire.agent_messages import MigrationReport

OnReport = Callable[[MigrationReport], None]


class HandoverOutcome(msgspec.Struct, frozen=True):
    """How a handover ended. `term` is the newest term that is known; `keeps`: this host still owns the VM. `code` names the error
    of a move that failed; `notes` are failures that were passed over."""

    report: MigrationReport
    term: int
    keeps: bool
    code: str = ""
    notes: tuple[str, ...] = ()


class _GivenUpError(HandoverError):
    """Nobody wants the move any more: ends a step in its middle."""


class HandoverDriver:
    """Moves one VM once.

    :param start: the engine's state to begin with; another than the first one is for an agent that restarted.
    :param on_report: called with the report after every step, but for those that the guest waits for; must not block.
    """

    def __init__(
        self, handover: Handover, clock: Clock, entropy: Entropy, on_report: OnReport, start: SourceState | None = None
    ) -> None:
        self._plan: HandoverPlan = handover.plan
        self._handover = handover
        self._clock = clock
        self._on_report = on_report
        self._writer = entropy.random_bytes(16).hex()
        self._figures = HandoverFigures(handover.plan, clock)
        self._state = start if start is not None else SourceState(handover.plan)
        self._notes: list[str] = []
        self._actions: SourceActions | None = None
        self._unwanted = ""
        self._given_up = asyncio.Event()
        self._ended_by_itself = ""

    async def run(self) -> HandoverOutcome:
        """Move the VM; returns when the handover has ended, whichever way.

        Cancelled before the cut was sent, it undoes what it did (bounded) and raises; after that it stops where it is, and the
        record decides when the agent starts again (`source_engine.recovered`).
        """
        async with asyncio.TaskGroup() as group:
            link = PeerLink(self._plan, self._handover.dial, self._clock, group)
            actions = SourceActions(self._plan, self._handover.ports, link, self._clock, self._figures, self._writer)
            self._actions = actions
            actions.on_progress = lambda: self._on_report(self._figures.report(self._state))
            actions.deadline_at_s = self._state.plan.deadline_at_s
            try:
                await self._drive(actions, link)
            except asyncio.CancelledError:
                await self._undo_on_cancel(actions, link)
                raise
            finally:
                link.close()
        state = self._state
        keeps = state.step is SourceStep.FAILED
        term = state.record.term if state.record is not None else self._plan.term + (0 if keeps else 1)
        return HandoverOutcome(self._figures.report(state), term, keeps, state.code, tuple(self._notes))

    def hurry(self, deadline_at_s: float | None) -> None:
        """The deadline is another one from now on (by this host's monotonic clock), or there is none any more."""
        self._state = hurried(self._state, deadline_at_s)
        if self._actions is not None:
            self._actions.deadline_at_s = deadline_at_s

    def give_up(self, reason: str) -> None:
        """Nobody wants the move any more: undo it, unless its cut has left. While the guest is switched over, step by step in
        milliseconds, it is undone after the step; before that, in its middle. Idempotent."""
        self._unwanted = reason
        self._given_up.set()

    async def _drive(self, actions: SourceActions, link: PeerLink) -> None:
        while not self._state.step.is_terminal:
            if self._unwanted and can_be_given_up(self._state):
                self._state = given_up(self._state, self._unwanted)
                continue
            if delay_s := delay_s_of(self._state):
                await self._clock.sleep(delay_s)
            self._state = begun(self._state, self._clock.monotonic_s())
            with self._figures.step(self._step_name()):
                event = await self._perform_step(actions, link)
            if isinstance(event, Failed) and self._state.undo and self._state.undo[0] in UNTOLD:
                self._notes.append(f"{self._state.undo[0].value}: {event.reason}")
            self._state = advance(self._state, event, self._clock.monotonic_s())
            if self._state.step.is_terminal and self._state.code:
                await self._name_the_cause(actions)
            if self._state.step not in STANDING:  # making and sending a report would be a part of the pause
                self._on_report(self._figures.report(self._state))

    async def _name_the_cause(self, actions: SourceActions) -> None:
        """Processes of the VM that have ended by themselves are why the move failed, whatever errors that has made elsewhere."""
        if self._state.step is SourceStep.FAILED:  # it may have been known a moment after what it did
            await self._look_what_ended()
        if cause := self._ended_by_itself or actions.ended_at_target:
            self._notes.append(self._state.reason)
            self._state = msgspec.structs.replace(self._state, reason=cause)

    async def _look_what_ended(self) -> None:
        if not self._ended_by_itself:
            self._ended_by_itself = await self._handover.ports.machine.what_ended()

    async def _undo_on_cancel(self, actions: SourceActions, link: PeerLink) -> None:
        if self._state.step.is_terminal or Effect.CUT_SENT in self._state.effects:
            return
        if self._state.step is not SourceStep.UNDO:
            self._state = advance(self._state, Failed("cancelled", "the agent is stopping"), self._clock.monotonic_s())
        try:
            async with asyncio.timeout(self._plan.limits.cleanup_timeout_s):
                await self._drive(actions, link)
        except TimeoutError:
            return  # the agent's next start undoes the rest

    async def _perform_step(self, actions: SourceActions, link: PeerLink) -> SourceEvent:
        """Perform the step's actions side by side; the first failure stops the others."""
        state = self._state
        results: list[SourceEvent | None] = []
        parent = self._step_name()

        async def one(action: Action) -> None:
            with self._figures.spans.span(action.value, parent, SIDE_OF.get(action, Side.SOURCE)):
                results.append(await self._perform(actions, action, state))

        try:
            async with asyncio.TaskGroup() as outer:
                beside = [outer.create_task(link.watch())] if state.step in WATCHED else []
                if can_be_given_up(state) and state.step not in STANDING:
                    beside.append(outer.create_task(self._raise_when_given_up()))
                if (gate := self._handover.ports.gate) is not None:
                    await gate.wait(f"source-{state.step.value}")
                async with asyncio.TaskGroup() as group:
                    for action in actions_of(state):
                        group.create_task(one(action))
                for task in beside:
                    task.cancel()
        except BaseExceptionGroup as errors:
            failure = _failure(errors)
            await self._look_what_ended()
            return Failed(HandoverError.code, self._unwanted) if errors.subgroup(_GivenUpError) is not None else failure
        for event in results:
            if isinstance(event, Measured):
                return msgspec.structs.replace(event, mirror=actions.latest_mirror())
            if event is not None:
                return event
        return Performed()

    async def _raise_when_given_up(self) -> None:
        await self._given_up.wait()
        raise _GivenUpError(f"vm {self._plan.spec.request.name}", self._unwanted, "move it again if you want it elsewhere")

    async def _perform(self, actions: SourceActions, action: Action, state: SourceState) -> SourceEvent | None:
        try:
            return await actions.perform(action, state)
        except ArchitectError as error:
            if action not in TOLERATED:
                raise
            self._notes.append(f"{action.value}: {error}")
            return None

    def _step_name(self) -> str:
        state = self._state
        match state.step:
            case SourceStep.ROUND:
                return f"round-{state.round_count + 1}"
            case SourceStep.UNDO:
                return f"undo-{state.undo[0].value}"
            case step:
                return step.value


def _failure(errors: BaseExceptionGroup[BaseException]) -> Failed:
    """The first error of ours in the group; what is none is a defect, and fails the move like any other error."""
    leaves = list(_leaves(errors))
    for leaf in leaves:
        if not isinstance(leaf, Exception):
            raise leaf
    first = next((leaf for leaf in leaves if isinstance(leaf, ArchitectError)), leaves[0])
    if isinstance(first, ArchitectError):
        return Failed(first.code, f"{first.thing}: {first.cause}")
    return Failed(InternalError.code, f"{type(first).__name__}: {first}")


def _leaves(errors: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    leaves: list[BaseException] = []
    for error in errors.exceptions:
        leaves += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return leaves
