"""The target side of an agent: takes the connections of source agents, keeps one session per handover that comes.

`run` owns every task; `connection` makes the handler of one incoming `runtime.rpc.Channel`. Sessions outlive connections from the
cut on; before it the end of the source's connection, or its silence, undoes them. Of one that is over only its answers are kept.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar, assert_never

from architect.errors import (
    ArchitectError,
    ConflictError,
    IncompatibleError,
    NotFoundError,
    PeerError,
    UnavailableError,
    described,
)
from architect.migration.compatibility import check_target
from architect.migration.ended_handover import EndedHandover
from architect.migration.handover_plan import HandoverLimits
from architect.migration.leftover import check_asker, check_ended, check_newest
from architect.migration.target_engine import TargetStep
from architect.migration.target_ports import TargetHostPort, TargetPorts
from architect.migration.target_session import SessionSetting, TargetSession
from architect.model.handover_state import HandoverState
from architect.model.ids import HostName, MigrationId, VmId
from architect.runtime.clock import Clock, Entropy
from architect.runtime.rpc import Call
from architect.wire.agent_messages import HostFacts
from architect.wire.framing import CHECK_VERSION, PROTOCOL_VERSION
from architect.wire.migration_messages import (
    Abort,
    Accepted,
    Alive,
    AskClock,
    AskStatus,
    AwaitFilled,
    BasePart,
    ClockIs,
    Cut,
    Hold,
    LogPart,
    PeerHello,
    PeerWelcome,
    Prepare,
    Prepared,
    Release,
    Start,
    Started,
    TargetRequest,
    TargetStatus,
)

ENDED_KEPT_MAX = 128
ResultT = TypeVar("ResultT")


class HandoverTarget:
    """All handovers that come to this host.

    :param facts: what this host is; its name goes into ownership records.
    """

    def __init__(
        self, facts: HostFacts, agent: TargetHostPort, clock: Clock, entropy: Entropy, limits: HandoverLimits | None = None
    ) -> None:
        self.facts = facts
        self._agent = agent
        self._clock = clock
        self._entropy = entropy
        self._limits = limits if limits is not None else HandoverLimits()
        self._sessions: dict[MigrationId, TargetSession] = {}
        self._ended: dict[MigrationId, EndedHandover] = {}
        self._preparing: set[VmId] = set()
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Own the sessions' tasks until cancelled; gives up sessions whose source has fallen silent."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            while True:
                await self._clock.sleep(self._limits.silence_max_s / 4)
                for session in list(self._sessions.values()):
                    if session.silent_s > self._limits.silence_max_s:
                        self.give_up(session, "the source has fallen silent")

    def now_s(self) -> float:
        """What this host's monotonic clock shows."""
        return self._clock.monotonic_s()

    def connection(self, peer_host: HostName) -> TargetConnection:
        """The handler for a connection from that host's agent (the name in its certificate)."""
        return TargetConnection(self, peer_host)

    async def recover(self, request: Prepare, ports: TargetPorts) -> None:
        """Take up a machine that was found halted, or filling, after the agent's restart; returns when it runs or is gone.

        :param request: as `TargetHostPort.reserve` got it.
        """
        session = self._open(request, self._setting(ports, recovers=True))
        self._spawn(session.recover())
        await session.wait_claimed()

    def source_is_gone(self, source: HostName, why: str) -> None:
        """The fabric says that this host is gone for good: what is missing of VMs that came from there will not come."""
        for session in self._sessions.values():
            if session.request.source.name == source:
                session.source_watch.host_is_gone(why)

    async def let_go(self, vm: VmId) -> None:
        """A handover away from here begins: end what is left of the one that brought the VM. `open_handover` awaits this.

        Raises:
            ConflictError: the VM is still coming.
        """
        for session in list(self._sessions.values()):
            if session.request.spec.id == vm and not session.state.step.is_terminal:
                raise ConflictError(
                    f"vm {session.request.spec.request.name}",
                    f"is still arriving at host {self.facts.name} ({session.state.step.value})",
                    "wait for the end of that move",
                )
            if session.request.spec.id == vm:
                await session.stop_greeting()

    async def prepare(self, request: Prepare) -> Prepared:
        """Check, reserve, and open a session.

        Raises:
            IncompatibleError, CapacityError, ConflictError: the VM cannot come here, by name.
        """
        check_target(request.spec, request.source, self.facts)
        vm = request.spec.id
        if vm in self._preparing:
            cause = f"host {self.facts.name} is being prepared for it by another move"
            raise ConflictError(f"vm {request.spec.request.name}", cause, "try again in a moment")
        self._preparing.add(vm)
        try:
            await self._clear_the_way(request)
            ports = await self._agent.reserve(request)
            self._open(request, self._setting(ports))
        finally:
            self._preparing.discard(vm)
        base = request.spec.base
        present = await ports.bases.present_bytes(base.digest, base.size_bytes)
        return Prepared(present, self.facts.address)

    def session(self, migration: MigrationId) -> TargetSession:
        """The session of a handover that is not over.

        Raises:
            NotFoundError: there is none.
        """
        session = self._sessions.get(migration)
        if session is None:
            raise NotFoundError(f"handover {migration}", f"is not known at host {self.facts.name}", "start it anew")
        return session

    def ended(self, migration: MigrationId) -> EndedHandover | None:
        """What is kept of a handover that is over."""
        return self._ended.get(migration)

    def forgotten(self, migration: MigrationId) -> HandoverState | None:
        """How a handover ended whose session an agent before us had; None for one that has a session here, or is not known."""
        return None if migration in self._sessions or migration in self._ended else self._agent.outcome(migration)

    def give_up(self, session: TargetSession, reason: str) -> None:
        """Undo the session, unless its cut has arrived."""
        if session.state.step in (TargetStep.RESERVED, TargetStep.STARTED):
            with contextlib.suppress(UnavailableError):
                self._spawn(session.abort(reason))

    def take_over(self, session: TargetSession) -> None:
        """Begin the takeover: the session's cut has arrived."""
        self._spawn(session.take_over())

    async def finish(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        """Do `work` as a task of this service: it ends even if the asker goes."""
        return await asyncio.shield(self._spawn(work))

    def _open(self, request: Prepare, setting: SessionSetting) -> TargetSession:
        """A new session; once it is over, only what remains of it is kept."""
        session = TargetSession(request, setting)

        async def keep_remains() -> None:
            await session.wait_over()
            if self._sessions.get(request.migration) is session:
                del self._sessions[request.migration]
                self._ended[request.migration] = session.remains()
                while len(self._ended) > ENDED_KEPT_MAX:
                    del self._ended[next(iter(self._ended))]

        self._ended.pop(request.migration, None)
        self._sessions[request.migration] = session
        self._spawn(keep_remains())
        return session

    def _setting(self, ports: TargetPorts, recovers: bool = False) -> SessionSetting:
        writer = self._entropy.random_bytes(16).hex()
        host, address = self.facts.name, self.facts.address
        return SessionSetting(host, address, ports, self._agent, self._clock, self._limits, writer, recovers)

    async def _clear_the_way(self, request: Prepare) -> None:
        """End an earlier attempt at this VM, in less time than the source waits for the answer to `Prepare`.

        Raises: as `_end_leftovers`.
            UnavailableError: it takes longer.
        """
        bound_s = self._limits.leftovers_timeout_s
        try:
            async with asyncio.timeout(bound_s):
                await self._end_leftovers(request)
        except TimeoutError as error:
            cause = f"what host {self.facts.name} has of an earlier move of it could not be ended in {bound_s:g} s"
            raise UnavailableError(
                f"vm {request.spec.request.name}", cause, "see whether its ownership log answers, and try again"
            ) from error

    async def _end_leftovers(self, request: Prepare) -> None:
        """As `_clear_the_way`; the ownership log says whether that is safe, not its time-outs (`leftover`).

        Raises:
            ConflictError: it may still take over, or has; or who asks does not own the VM, or not by the newest record.
            UnavailableError: the log does not tell.
        """
        vm, patience_s = request.spec.id, self._limits.leftover_timeout_s
        try:
            async with asyncio.timeout(patience_s):
                await self._agent.wait_known(vm)
        except TimeoutError as error:
            cause = f"was coming to host {self.facts.name} when its agent was started again, and is not found yet"
            raise ConflictError(
                f"vm {request.spec.request.name}", cause, "try again in a moment, or choose another host"
            ) from error
        left = [one for one in self._sessions.values() if one.request.spec.id == vm and not one.state.step.is_terminal]
        if not left:
            return
        check_asker(request, await self._agent.latest_record(vm))
        ending = {self._spawn(one.abort(f"handover {request.migration} takes its place")) for one in left}
        await asyncio.wait(ending, timeout=patience_s)
        for session in left:
            check_ended(session.state)
        check_newest(request, await self._agent.latest_record(vm))

    def _spawn(self, work: Coroutine[Any, Any, ResultT]) -> asyncio.Task[ResultT]:
        assert self._group is not None, "run() owns the tasks"
        try:
            return self._group.create_task(work)
        except RuntimeError as error:
            work.close()
            raise UnavailableError(f"host {self.facts.name}", "its agent is stopping", "try again when it is back") from error


class TargetConnection:
    """One connection of a source agent: agrees on the version, then serves handovers."""

    def __init__(self, target: HandoverTarget, peer_host: HostName) -> None:
        self._target = target
        self._peer_host = peer_host
        self._is_welcome = False
        self._has_ended = False
        self._opened: list[MigrationId] = []

    async def handle(self, message: Any, body: bytes, call: Call | None) -> Any:
        """Serve one request (a `runtime.rpc` handler)."""
        if isinstance(message, PeerHello):
            return self._welcome(message)
        if not self._is_welcome:
            raise PeerError(f"host {self._peer_host}", "spoke before PeerHello", CHECK_VERSION)
        outcome = await self._target.finish(self._outcome(message, body))
        if isinstance(outcome, ArchitectError):
            raise outcome
        return outcome

    def ended(self) -> None:
        """The connection has ended: what has not been cut over is undone."""
        self._has_ended = True
        for migration in self._opened:
            self._undo(migration)

    def _welcome(self, hello: PeerHello) -> PeerWelcome:
        if hello.version != PROTOCOL_VERSION:
            cause = f"speaks version {hello.version} of the migration protocol, this host {PROTOCOL_VERSION}"
            raise IncompatibleError(f"host {hello.host}", cause, "run the same version on both hosts")
        if hello.host != self._peer_host:
            raise PeerError(f"host {self._peer_host}", f"says that it is {hello.host}", "check its certificate")
        self._is_welcome = True
        return PeerWelcome(PROTOCOL_VERSION, self._target.facts.name)

    async def _outcome(self, message: TargetRequest, body: bytes) -> Any:
        """The answer, or the error as a value: a task of the service never raises, or it would take the others with it."""
        try:
            return await self._serve(message, body)
        except Exception as error:  # a defect must not end other VMs' handovers
            return described(error, f"handover {message.migration}")

    async def _serve(self, message: TargetRequest, body: bytes) -> Any:
        if isinstance(message, Prepare):
            return await self._prepare(message)
        if isinstance(message, AskStatus) and (outcome := self._target.forgotten(message.migration)) is not None:
            return TargetStatus(outcome, "")
        if (ended := self._target.ended(message.migration)) is not None:
            self._check_source(message.migration, ended.source)
            return ClockIs(self._target.now_s()) if isinstance(message, AskClock) else ended.answer(message)
        session = self._target.session(message.migration)
        self._check_source(message.migration, session.request.source.name)
        session.heard()
        match message:
            case BasePart():
                await session.base_part(message.offset, body)
            case Start():
                listener = await session.start()
                return Started(listener.address, listener.port, listener.server_name)
            case LogPart():
                await session.log_part(message.offset, body)
            case Alive():
                pass
            case AskClock():
                return ClockIs(self._target.now_s())
            case Hold():
                await session.hold()
            case Cut():
                return await self._cut(session, message, body)
            case AwaitFilled():
                await session.wait_ended()
                return session.status()
            case Release():
                return await session.release()
            case Abort():
                await session.abort(message.reason)
                return session.status()
            case AskStatus():
                return session.status()
            case _:
                assert_never(message)
        return Accepted()

    def _check_source(self, migration: MigrationId, source: HostName) -> None:
        if source != self._peer_host:
            raise PeerError(f"host {self._peer_host}", f"is not the source of handover {migration}", "check who sends this")

    async def _prepare(self, message: Prepare) -> Prepared:
        if message.source.name != self._peer_host:
            raise PeerError(f"host {self._peer_host}", f"says that it is {message.source.name}", "check its certificate")
        self._opened.append(message.migration)
        prepared = await self._target.prepare(message)
        if self._has_ended:
            self._undo(message.migration)
        return prepared

    async def _cut(self, session: TargetSession, message: Cut, body: bytes) -> Any:
        await session.accept_cut(message, body)
        self._target.take_over(session)
        return await session.committed()

    def _undo(self, migration: MigrationId) -> None:
        with contextlib.suppress(NotFoundError):
            self._target.give_up(self._target.session(migration), "the source's connection has ended")
