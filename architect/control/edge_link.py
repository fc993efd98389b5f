"""The control plane's connection to the edge: dialled again for ever; calls wait a moment for it.

The edge keeps its table over its own restarts. On each new connection `on_connected` runs, so that what changed meanwhile is
defined or forgotten there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from architect.control.bell import Bell
from architect.errors import IncompatibleError, UnavailableError
from architect.runtime.clock import Clock
from architect.runtime.redial import redial_forever
from architect.runtime.rpc import Channel
from architect.wire.edge_messages import EdgeFacts, EdgeHello
from architect.wire.framing import PROTOCOL_VERSION

CALL_TIMEOUT_S = 10.0
WAIT_CONNECTED_S = 5.0

Dial = Callable[[], Awaitable[Channel]]


class EdgeLink:
    """One edge.

    :param name: how errors name it.
    :param dial: opens a channel that carries edge messages.
    """

    def __init__(self, name: str, dial: Dial, clock: Clock, bell: Bell) -> None:
        self.name = name
        self.facts: EdgeFacts | None = None
        self.sessions = 0
        self._dial = dial
        self._clock = clock
        self._bell = bell
        self._channel: Channel | None = None

    @property
    def is_connected(self) -> bool:
        """Whether calls can be made now."""
        return self._channel is not None

    async def run(self) -> None:
        """Keep the connection; for ever."""
        await redial_forever(f"edge {self.name}", self._session, self._clock.sleep)

    async def call(self, request: Any, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        """Ask the edge; waits up to `WAIT_CONNECTED_S` for a connection.

        Raises:
            ArchitectError: what the edge reported.
            UnavailableError: it is not connected.
            OutcomeUnknownError: it did not answer.
        """
        seen = self._bell.count
        if self._channel is None:
            deadline_s = self._clock.monotonic_s() + WAIT_CONNECTED_S
            while self._channel is None and (left_s := deadline_s - self._clock.monotonic_s()) > 0:
                seen = await self._bell.wait_rung(seen, left_s)
        if self._channel is None:
            raise UnavailableError(f"edge {self.name}", "is not connected", "see that `architect edge` runs, and try again")
        return await self._channel.call(request, timeout_s=timeout_s)

    async def _session(self) -> None:
        channel = await self._dial()
        running = asyncio.create_task(channel.run())
        try:
            facts = await channel.call(EdgeHello(PROTOCOL_VERSION, "control"), timeout_s=CALL_TIMEOUT_S)
            if not isinstance(facts, EdgeFacts):
                raise IncompatibleError(
                    f"edge {self.name}", "did not answer Hello with its facts", "install the same version there"
                )
            self.facts = facts
            self._channel = channel
            self.sessions += 1
            self._bell.ring()
            await asyncio.shield(running)
        finally:
            self._channel = None
            self._bell.ring()
            channel.close()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
