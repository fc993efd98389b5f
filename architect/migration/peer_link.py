"""The source's connection to the target's agent: dial, introduce, ask with deadlines, notice when it is gone.

Used by the driver of one handover, which owns the task group that the connection runs in.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

from architect.errors import ArchitectError, IncompatibleError, OutcomeUnknownError, PeerError, UnavailableError
from architect.migration.handover_plan import HandoverPlan
from architect.migration.ports import DialPort, PeerPort
from architect.runtime.clock import Clock
from architect.runtime.clock_offset import ClockOffset
from architect.wire.framing import PROTOCOL_VERSION
from architect.wire.migration_messages import Accepted, Alive, AskClock, ClockIs, PeerHello, PeerWelcome

CLOCK_EXCHANGES = 6
CLOCK_INTERVAL_S = 0.002
AnswerT = TypeVar("AnswerT")


class PeerLostError(UnavailableError):
    """The other agent's connection has ended, or it answers no more."""

    code = "peer-lost"


SILENCES = frozenset((UnavailableError.code, OutcomeUnknownError.code, PeerLostError.code))
"""The errors of a peer that has not answered."""


class PeerLink:
    """At most one open connection to the target's agent."""

    def __init__(self, plan: HandoverPlan, dial: DialPort, clock: Clock, group: asyncio.TaskGroup) -> None:
        self._plan = plan
        self._dial = dial
        self._clock = clock
        self._group = group
        self._peer: PeerPort | None = None
        self._lost = asyncio.Event()
        self._heard_at_s = clock.monotonic_s()

    @property
    def is_open(self) -> bool:
        """Whether a connection is open, as far as is known."""
        return self._peer is not None and not self._lost.is_set()

    async def connect(self) -> None:
        """Open a connection unless one is open, and agree on the version.

        Raises:
            UnavailableError: the target's agent does not answer.
            IncompatibleError: it speaks another version.
        """
        if self.is_open:
            return
        self.close()
        try:
            async with asyncio.timeout(self._plan.limits.call_timeout_s):
                self._peer = await self._dial.dial()
        except TimeoutError as error:
            raise UnavailableError(self._thing, "cannot connect (no answer in time)", "see whether the host is up") from error
        self._lost = asyncio.Event()
        self._group.create_task(self._run(self._peer, self._lost))
        welcome = await self.ask(PeerHello(PROTOCOL_VERSION, self._plan.host), PeerWelcome)
        if welcome.version != PROTOCOL_VERSION:
            cause = f"speaks version {welcome.version} of the migration protocol, this host {PROTOCOL_VERSION}"
            raise IncompatibleError(self._thing, cause, "run the same version on both hosts")

    async def ask(
        self, value: Any, expected: type[AnswerT], body: bytes | memoryview = b"", timeout_s: float | None = None
    ) -> AnswerT:
        """Ask and wait for an answer of the expected kind.

        Raises:
            ArchitectError: what the target reported.
            PeerLostError: no connection is open.
            OutcomeUnknownError: no answer in time.
            PeerError: an answer of another kind.
        """
        if self._peer is None or self._lost.is_set():
            raise PeerLostError(self._thing, "the connection has ended", "try the move again")
        bound_s = self._plan.limits.call_timeout_s if timeout_s is None else timeout_s
        try:
            # The outer bound also covers a send that the peer does not read.
            async with asyncio.timeout(bound_s + 1.0):
                answer, _ = await self._peer.call_with_body(value, body, timeout_s=bound_s)
        except TimeoutError as error:
            cause = f"has not answered for {bound_s:g} s ({type(value).__name__})"
            raise OutcomeUnknownError(self._thing, cause, "see whether it took effect before a retry") from error
        self._heard_at_s = self._clock.monotonic_s()
        if not isinstance(answer, expected):
            raise PeerError(self._thing, f"answered {type(value).__name__} by {type(answer).__name__}", "check its version")
        return answer

    async def compare_clocks(self) -> ClockOffset:
        """Find out how far the target's monotonic clock is from ours: some exchanges, of which the quickest counts.

        Raises: as `ask`.
        """
        offset = ClockOffset()
        for _ in range(CLOCK_EXCHANGES):
            asked_at_s = self._clock.monotonic_s()
            answer = await self.ask(AskClock(self._plan.migration), ClockIs)
            offset.add(asked_at_s, answer.now_s, self._clock.monotonic_s())
            await self._clock.sleep(CLOCK_INTERVAL_S)
        return offset

    async def watch(self) -> None:
        """Wait until the target is gone: never returns, asks now and then.

        Raises:
            PeerLostError: the connection ended, or a question was not answered.
        """
        interval_s = self._plan.limits.alive_interval_s
        while True:
            quiet_s = self._clock.monotonic_s() - self._heard_at_s
            try:
                async with asyncio.timeout(max(interval_s - quiet_s, 0.01)):
                    await self._lost.wait()
                raise PeerLostError(self._thing, "the connection has ended", "see whether the host is up")
            except TimeoutError:
                pass
            if self._clock.monotonic_s() - self._heard_at_s < interval_s:
                continue
            try:
                await self.ask(Alive(self._plan.migration), Accepted)
            except ArchitectError as error:
                raise PeerLostError(self._thing, error.cause, error.next_step) from error

    def close(self) -> None:
        """End the connection. Idempotent."""
        if self._peer is not None:
            self._peer.close()
            self._peer = None
        self._lost.set()

    async def _run(self, peer: PeerPort, lost: asyncio.Event) -> None:
        try:
            await peer.run()
        except ArchitectError:
            peer.close()  # it broke the protocol: to us the same as a lost connection, and every open call has failed
        finally:
            lost.set()

    @property
    def _thing(self) -> str:
        return f"host {self._plan.target.name}"
