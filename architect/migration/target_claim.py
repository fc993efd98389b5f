"""The ownership records that a target writes: its claim, or what keeps the VM at its source; and the hand-back."""

from __future__ import annotations

import asyncio
import contextlib

from architect.errors import ArchitectError
from architect.migration.found_vm import abort_record, hand_back_record, run_record
from architect.migration.handover_plan import HandoverLimits
from architect.migration.ports import decided_record
from architect.migration.target_engine import RecordKnown
from architect.migration.target_ports import TargetPorts
from architect.model.ids import HostName
from architect.model.ownership import OwnershipRecord
from architect.wire.migration_messages import Prepare


class TargetClaim:
    """The records of one handover.

    :param writer: marks them as this session's.
    :param recovers: the agent was restarted: what its predecessor may have claimed must not come true later.
    """

    def __init__(
        self, request: Prepare, host: HostName, ports: TargetPorts, writer: str, limits: HandoverLimits, *, recovers: bool
    ) -> None:
        self._request = request
        self._host = host
        self._ports = ports
        self._writer = writer
        self._limits = limits
        self._recovers = recovers

    async def prepare(self) -> None:
        """What takes longest of the claim, done before the source stops; that it is late or fails harms nothing."""
        with contextlib.suppress(ArchitectError, TimeoutError):
            async with asyncio.timeout(self._limits.record_timeout_s):
                await self._ports.ownership.prepare(self._run())

    async def create(self) -> RecordKnown:
        """Claim the VM; with a machine that is dead, or after a restart, leave it to its source.

        Raises:
            ArchitectError: it is not known which record exists.
        """
        request = self._request
        if self._recovers or not await self._ports.machine.is_alive():
            record = abort_record(request.spec.id, request.term + 1, request.source.name, self._writer, request.migration)
        else:
            record = self._run()
        return RecordKnown(await decided_record(self._ports.ownership, record))

    async def give_back(self) -> RecordKnown:
        """Give the VM, which never ran here, back to its source.

        Raises:
            ArchitectError: it is not known which record exists.
        """
        request = self._request
        record = hand_back_record(request.spec.id, request.term + 2, request.source.name, self._writer, request.migration)
        return RecordKnown(await decided_record(self._ports.ownership, record))

    def _run(self) -> OwnershipRecord:
        request = self._request
        return run_record(request.spec.id, request.term + 1, self._host, self._writer, request.migration)
