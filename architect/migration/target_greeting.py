"""What a target does once the VM runs there, beside everything else: edge and guest learn where it is; it is noted when it is seen.

Failures here cost no VM, so they end here. The greeting has two halves: `greet` steers and greets, `watch_guest` waits for the
guest's first packet. It is over when the source forwards nothing more, or cannot say so any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from architect.errors import ArchitectError
from architect.migration.handover_plan import HandoverLimits
from architect.migration.span_recorder import SpanRecorder
from architect.migration.steering import steer_until_done
from architect.migration.target_ports import TargetPorts
from architect.model.handover_span import Side
from architect.runtime.clock import Clock

_log = logging.getLogger(__name__)

CLOCK_PATIENCE_S = 120.0
SILENT_GUEST_S = 0.05
"""How long a guest that has answered is given to send a packet: it may have nothing to send."""


class TargetGreeting:
    """One VM's greeting.

    :param address: this host's on the underlay; `source_address` is the other's, which may speak for the VM until it is released.
    """

    def __init__(
        self, ports: TargetPorts, clock: Clock, limits: HandoverLimits, spans: SpanRecorder, address: str, source_address: str
    ) -> None:
        self._ports = ports
        self._clock = clock
        self._limits = limits
        self._spans = spans
        self._address = address
        self._source_address = source_address
        self._released = asyncio.Event()
        self._sent = asyncio.Event()
        self._seen = asyncio.Event()

    async def greet(self, term: int) -> None:
        """Steer the VM's packets here by `term`, tell the guest the time, run its hook; when released, be the only one to speak."""
        await self._steer(term, self._source_address)
        machine = self._ports.machine
        await self._told("set-local", Side.TARGET, self._ports.flows.set_local)
        knows_time = await self._told("sync-clock", Side.GUEST, machine.sync_clock)
        await self._told("after-resume", Side.GUEST, lambda: machine.run_hook("after-resume"))
        await _wait_up_to(self._sent, SILENT_GUEST_S)
        self._seen.set()
        # The source says when it forwards nothing more; one that cannot say it any more does not forward either.
        await _wait_up_to(self._released, self._limits.silence_max_s)
        await self._steer(term, "")
        until_s = self._clock.monotonic_s() + CLOCK_PATIENCE_S
        while not knows_time and self._clock.monotonic_s() < until_s:  # one that waits for its pages is slow to answer
            await self._clock.sleep(self._limits.back_off_max_s)
            knows_time = await self._told("sync-clock", Side.GUEST, machine.sync_clock)
        if not knows_time:
            _log.warning("a moved guest does not take the time: its clock is behind by its pause")

    async def _told(self, name: str, side: Side, call: Callable[[], Awaitable[None]]) -> bool:
        try:
            with self._spans.span(name, side=side):
                async with asyncio.timeout(self._limits.hook_timeout_s):
                    await call()
        except (ArchitectError, TimeoutError):
            return False
        return True

    async def watch_guest(self, resumed_at_s: float) -> None:
        """Note when the first packet of the guest leaves, which runs since `resumed_at_s` by our monotonic clock. Bounded."""
        with contextlib.suppress(ArchitectError, TimeoutError):
            async with asyncio.timeout(self._limits.hook_timeout_s):
                first_at_s = await self._ports.flows.wait_first_packet()
            self._spans.add("first-packet", resumed_at_s, max(first_at_s, resumed_at_s), side=Side.GUEST)
            self._sent.set()

    async def release(self) -> None:
        """The source forwards nothing more. Returns when the guest was seen (it has answered and sent a packet), or late.

        Measured in turns where both ends share two cores: by the first packet alone the gap's median was 306 ms instead of 239.
        """
        self._released.set()
        await _wait_up_to(self._seen, self._limits.seen_timeout_s)

    async def _steer(self, term: int, previous: str) -> None:
        times = await steer_until_done(self._ports.edge, term, self._address, previous, self._clock, self._limits)
        if times is not None:
            self._spans.add("steer-applied", times.start_s, times.end_s, "greet", Side.EDGE)


async def _wait_up_to(event: asyncio.Event, timeout_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
