"""The agent's hold on one guest: its channel, its output log, and what to do with it after every pause.

Lives from the moment the machine runs (or is found) until it ends or leaves. Guest trouble is reported, never fatal to the agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path

from architect.agent.log_store import LogStore
from architect.drafter.guest_channel import GuestChannel, GuestHook, LogRecord
from architect.drafter.guest_payloads import GuestConfig, signal_number
from architect.errors import ArchitectError
from architect.model.vm_spec import VmSpec

READY_TIMEOUT_S = 30.0
HOOK_TIMEOUT_S = 2.0
STOP_POLL_S = 0.05

_log = logging.getLogger(__name__)


class GuestSession:
    """One guest on this host.

    :param log: where its output goes; the caller owns it.
    :param fresh: the guest comes from a template and has told nothing to anybody yet.
    """

    def __init__(self, spec: VmSpec, channel_path: Path, log: LogStore, *, fresh: bool) -> None:
        self._spec = spec
        self._log = log
        position = None if fresh else log.position
        self.channel = GuestChannel(channel_path, f"vm {spec.request.name}", self._take, log_position=position)

    async def _take(self, record: LogRecord) -> None:
        await self._log.take(record.stream, record.seq, record.realtime_ns, record.data)

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[GuestSession]:
        """The channel connects, and reconnects, within this context."""
        async with self.channel:
            yield self

    async def set_up(self, dns: tuple[str, ...]) -> None:
        """Make the guest this VM and start its workload.

        Raises:
            ArchitectError: the guest is silent, or refuses; the cause says what.
        """
        request = self._spec.request
        await self.channel.wait_ready(READY_TIMEOUT_S)
        config = GuestConfig(request.name, request.address, self._spec.mac, request.mtu, dns)
        await self.channel.configure(config)
        await self.channel.start(self._spec.process)

    async def sync_clock(self) -> None:
        """Correct the guest's clock after a pause; a guest that does not answer keeps its time, which is logged."""
        try:
            await self.channel.set_clock()
        except ArchitectError as error:
            _log.warning("clock: %s", error)

    async def run_hook(self, name: str) -> None:
        """Run the guest's hook of that name (`before-suspend`, `after-resume`); its failure is logged and stops nothing."""
        try:
            await self.channel.run_hook(GuestHook[name.upper().replace("-", "_")], HOOK_TIMEOUT_S)
        except ArchitectError as error:
            _log.warning("hook %s: %s", name, error)

    async def ask_to_stop(self) -> None:
        """Send the image's stop signal to the workload."""
        await self.channel.signal(signal_number(self._spec.process.stop_signal))

    async def power_off(self) -> None:
        """Have the guest write its disk and switch itself off; bounded, and no error if it does not answer."""
        with contextlib.suppress(ArchitectError, TimeoutError):
            async with asyncio.timeout(5):
                await self.channel.power_off()
