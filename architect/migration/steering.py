"""Telling the edge where a VM is, until it has heard: what an owner does after its record, however long the edge is away."""

from __future__ import annotations

import asyncio

from architect.errors import ArchitectError, ConflictError, NotFoundError
from architect.migration.handover_plan import HandoverLimits
from architect.migration.ports import EdgePort
from architect.model.handover_span import TimedAway
from architect.runtime.clock import Clock


async def steer_until_done(
    edge: EdgePort, term: int, host: str, previous: str, clock: Clock, limits: HandoverLimits
) -> TimedAway | None:
    """Steer the VM's packets to `host`; returns when the edge has them (and when it took them, by our clock, if that is known), or
    knows a newer term (the VM has left) or no such VM.

    Must be cancelled before a handover away from this host begins: it would steer back by the same term.
    """
    attempt = 0
    while True:
        try:
            async with asyncio.timeout(limits.call_timeout_s):
                return await edge.steer(term, host, previous)
        except (ConflictError, NotFoundError):
            return None
        except (ArchitectError, TimeoutError):
            await clock.sleep(min(limits.back_off_s * 2.0 ** min(attempt, 16), limits.back_off_max_s))
            attempt += 1
