"""VMs that fill: they run at a target, and some of their memory or disk is still at the host that they left.

What users are told: which of them wait for a host that their own does not reach. What agents are told: which of those hosts are
gone for good, as long as that holds. The agent decides (`migration.source_watch`): only it knows whether it hears the host.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping

from architect.control.fabric import Fabric
from architect.control.records import EventKind
from architect.control.rooms import why_gone_for_good
from architect.errors import ArchitectError
from architect.model.ids import HostName, VmId
from architect.wire.agent_messages import HostReport, SourceGone

TELL_TIMEOUT_S = 5.0
TELL_EVERY_S = 2.0

_log = logging.getLogger(__name__)


class Filling:
    """Looks at the reports. Memory only: which VM was said to wait for what."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._waiting: dict[VmId, str] = {}

    async def look(self, reports: Mapping[HostName, HostReport]) -> None:
        """One look."""
        waiting: dict[VmId, str] = {}
        for host, report in reports.items():
            for seen in report.vms:
                if not seen.fills_from:
                    continue
                source = HostName(seen.fills_from)
                if why := why_gone_for_good(self._fabric, source):
                    self._fabric.jobs.start(f"tell {host} of {source}", functools.partial(_tell, self._fabric, host, source, why))
                if seen.waits_because:
                    waiting[seen.id] = seen.waits_because
        news = {vm: why for vm, why in waiting.items() if self._waiting.get(vm) != why}
        over = self._waiting.keys() - waiting.keys()
        self._waiting = waiting
        if news or over:
            await self._say(news, over)

    async def _say(self, news: Mapping[VmId, str], over: set[VmId]) -> None:
        async with self._fabric.book.change() as change:
            for vm in sorted(news.keys() | over):
                record = self._fabric.book.vms.get(vm)
                if record is not None and not record.state.is_terminal:
                    change.say(EventKind.VM_WAITS if vm in news else EventKind.VM_RUNNING, news.get(vm, "waits no more"), vm=record)


async def _tell(fabric: Fabric, host: HostName, source: HostName, why: str) -> None:
    try:
        await fabric.fleet.call(host, SourceGone(source, why), timeout_s=TELL_TIMEOUT_S)
    except ArchitectError as error:
        _log.warning("host %s: %s", host, error)
    await fabric.clock.sleep(TELL_EVERY_S)
