"""EdgeClient: an agent's (or the control plane's) connection to the edge, dialled again for ever, pinged while it is idle."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TypeVar

from architect.conduit.round_trip import RoundTrip
from architect.errors import IncompatibleError, PeerError, UnavailableError
from architect.model.endpoints import Endpoint, Publish
from architect.model.handover_span import TimedAway
from architect.model.ids import VmId, Vni
from architect.runtime.clock import Clock, SystemClock
from architect.runtime.clock_offset import ClockOffset
from architect.runtime.redial import RETRY_S_MIN, redial_forever
from architect.runtime.rpc import Channel, open_channel
from architect.runtime.tls import client_context, san_name
from architect.wire.edge_messages import (
    DefineVm,
    Done,
    EdgeFacts,
    EdgeHello,
    EdgeMessage,
    EdgeState,
    Endpoints,
    ForgetVm,
    Ping,
    Pong,
    ReadEdge,
    ResetFlows,
    Steer,
    Steered,
)
from architect.wire.framing import PROTOCOL_VERSION

PING_INTERVAL_S = 1.0
PING_TIMEOUT_S = 2.0
CALL_TIMEOUT_S = 5.0
PINGS_FIRST = 8

AnswerT = TypeVar("AnswerT")


class EdgeClient:
    """One edge, from here. Its `run` belongs to a task of the caller; calls wait for a connection.

    :param tls_folder: `cert.pem`, `cert.key` and `ca.pem` of this process.
    :param name: our own name, `agent:HOST` or `control`, as in the certificate.
    :param edge_name: the edge's name; its certificate must say `edge:NAME`.
    """

    def __init__(self, address: str, port: int, tls_folder: Path, name: str, edge_name: str, clock: Clock | None = None) -> None:
        self._address = (address, port)
        self._tls_folder = tls_folder
        self._name = name
        self._edge_name = edge_name
        self._clock = clock or SystemClock()
        self._channel: Channel | None = None
        self._connected = asyncio.Event()
        self.facts: EdgeFacts | None = None
        self.round_trip = RoundTrip()
        self._edge_clock = ClockOffset()

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection now."""
        return self._channel is not None

    async def run(self) -> None:
        """Keep a connection; for ever. Failures are logged and tried again with a growing pause."""
        await redial_forever(f"edge {self._edge_name}", self._session, self._clock.sleep)

    async def _session(self) -> None:
        channel = await open_channel(
            self._address,
            EdgeMessage,
            None,
            f"edge {self._edge_name}",
            tls=client_context(self._tls_folder),
            server_name=san_name(f"edge:{self._edge_name}"),
        )
        running = asyncio.create_task(channel.run())
        try:
            facts = await channel.call(EdgeHello(PROTOCOL_VERSION, self._name), timeout_s=CALL_TIMEOUT_S)
            if not isinstance(facts, EdgeFacts):
                raise IncompatibleError(
                    f"edge {self._edge_name}", "did not answer Hello with its facts", "install the same version"
                )
            self.facts = facts
            self.round_trip = RoundTrip()
            self._edge_clock = ClockOffset()
            for _ in range(PINGS_FIRST):
                await self._ping(channel)
            self._channel = channel
            self._connected.set()
            while not (await asyncio.wait({running}, timeout=PING_INTERVAL_S))[0]:
                await self._ping(channel)
        finally:
            self._channel = None
            self._connected.clear()
            channel.close()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def _ping(self, channel: Channel) -> None:
        begin_s = self._clock.monotonic_s()
        self._note_pong(begin_s, await channel.call(Ping(), timeout_s=PING_TIMEOUT_S))

    def _note_pong(self, begin_s: float, pong: EdgeMessage) -> None:
        now_s = self._clock.monotonic_s()
        self.round_trip.add(now_s - begin_s)
        if isinstance(pong, Pong):
            self._edge_clock.add(begin_s, pong.now_s, now_s)

    async def define_vm(self, vm: VmId, vni: Vni, inner_address: str, publish: tuple[Publish, ...]) -> tuple[Endpoint, ...]:
        """The VM exists; what its published ports became. Idempotent. As control plane only.

        Raises:
            ConflictError: a port is another VM's; nothing has changed.
            UnavailableError: the edge is not connected, or (OutcomeUnknownError) did not answer.
        """
        return (await self._call(DefineVm(vm, vni, inner_address, publish), Endpoints)).endpoints

    async def forget_vm(self, vm: VmId) -> None:
        """The VM is gone. Idempotent. As control plane only.

        Raises:
            UnavailableError: the edge is not connected, or (OutcomeUnknownError) did not answer.
        """
        await self._call(ForgetVm(vm), Done)

    async def steer(self, vm: VmId, vni: Vni, term: int, host: str, previous: str = "") -> TimedAway:
        """Packets for the VM go to `host` from the return on; those from `previous` are still taken. Idempotent.

        Returns when the edge did it, on our clock.

        Raises:
            NotFoundError: the edge does not know the VM.
            ConflictError: the term is over: another host has the VM.
            UnavailableError: the edge is not connected, or (OutcomeUnknownError) did not answer.
        """
        steered = await self._call(Steer(vm, vni, term, host, previous), Steered)
        clock = self._edge_clock
        return TimedAway(clock.ours(steered.start_s), clock.ours(steered.end_s), clock.error_s)

    async def reset_flows(self, vm: VmId) -> None:
        """End the VM's connections, both ways. As control plane only.

        Raises:
            NotFoundError: the edge does not know the VM.
            UnavailableError: the edge is not connected, or (OutcomeUnknownError) did not answer.
        """
        await self._call(ResetFlows(vm), Done)

    async def read(self, vm: VmId | None = None) -> EdgeState:
        """The edge's table (of one VM, or all) and counters.

        Raises:
            UnavailableError: the edge is not connected, or (OutcomeUnknownError) did not answer.
        """
        return await self._call(ReadEdge(vm or VmId("")), EdgeState)

    async def ping_rtt_s(self) -> float:
        """A round trip to the edge, now.

        Raises:
            UnavailableError: the edge is not connected, or (OutcomeUnknownError) did not answer.
        """
        begin_s = self._clock.monotonic_s()
        self._note_pong(begin_s, await self._call(Ping(), Pong))
        return self._clock.monotonic_s() - begin_s

    def settle_s(self) -> float:
        """How long after a steer this host may still be sent packets; from the round trips measured."""
        return self.round_trip.settle_s()

    async def settle(self) -> None:
        """Wait that long."""
        await self._clock.sleep(self.settle_s())

    async def wait_connected(self, timeout_s: float) -> None:
        """Wait for a connection.

        Raises:
            UnavailableError: there is none by then.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._connected.wait()
        except TimeoutError as error:
            raise UnavailableError(
                f"edge {self._edge_name}", "is not connected", "see that `architect edge` runs and can be reached"
            ) from error

    async def _call(self, message: EdgeMessage, answer: type[AnswerT]) -> AnswerT:
        """The answer. All requests are idempotent, so one that a broken connection cut off is asked again on the next one."""
        deadline_s = self._clock.monotonic_s() + CALL_TIMEOUT_S
        while True:
            await self.wait_connected(max(deadline_s - self._clock.monotonic_s(), 0.0))
            channel = self._channel
            assert channel is not None, "it is connected"
            try:
                reply = await channel.call(message, timeout_s=max(deadline_s - self._clock.monotonic_s(), 0.001))
                break
            except UnavailableError:
                if self._clock.monotonic_s() >= deadline_s:
                    raise
                await self._clock.sleep(RETRY_S_MIN)  # until `run` has seen it, too
        if not isinstance(reply, answer):
            raise PeerError(f"edge {self._edge_name}", f"answered with {type(reply).__name__}", "install the same version there")
        return reply
