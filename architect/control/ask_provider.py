"""Asking the provider about hosts that are silent: one whose instance is gone is not waited for."""

from __future__ import annotations

import asyncio
import functools
import logging

from architect.control.fabric import Fabric
from architect.errors import ArchitectError
from architect.model.ids import HostName

ASK_TIMEOUT_S = 5.0
ASK_EVERY_S = 2.0

_log = logging.getLogger(__name__)


def ask_about_silent(fabric: Fabric) -> None:
    """Start a question about each silent host that its provider still has; forget what was said of one that is back."""
    fabric.destroyed.difference_update([host for host in fabric.destroyed if not fabric.fleet.is_lost(host)])
    if fabric.instances is None:
        return
    for host in fabric.book.hosts:
        if fabric.fleet.is_lost(host) and host not in fabric.destroyed:
            fabric.jobs.start(f"ask about {host}", functools.partial(_ask, fabric, host))


async def _ask(fabric: Fabric, host: HostName) -> None:
    assert fabric.instances is not None
    try:
        async with asyncio.timeout(ASK_TIMEOUT_S):
            exists = await fabric.instances.exists(host)
    except (ArchitectError, TimeoutError) as error:
        _log.info("whether host %s exists: %s", host, error)
        exists = True
    if exists:
        await fabric.clock.sleep(ASK_EVERY_S)
    elif fabric.fleet.is_lost(host):
        fabric.destroyed.add(host)  # the end of the job rings
