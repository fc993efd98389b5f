"""What the source sends the target in parts over the agents' link, beside memory and disk: its base disk, and the VM's output."""

from __future__ import annotations

from architect.errors import HandoverError
from architect.migration.action_bounds import part_bounds
from architect.migration.handover_plan import HandoverPlan
from architect.migration.handover_report import HandoverFigures
from architect.migration.peer_link import PeerLink
from architect.migration.source_ports import SourcePorts
from architect.runtime.clock import Clock
from architect.runtime.part_size import PartSize
from architect.wire.migration_messages import Accepted, BasePart, LogPart


class SourceParts:
    """One handover's parts, which take about as long on any link. Where it got to in the output is known here."""

    def __init__(self, plan: HandoverPlan, ports: SourcePorts, link: PeerLink, clock: Clock, figures: HandoverFigures) -> None:
        self._plan = plan
        self._ports = ports
        self._link = link
        self._clock = clock
        self._figures = figures
        self._size = PartSize(part_bounds(plan.limits.part_bytes))
        self._log_sent = 0

    async def send_base(self, offset: int) -> None:
        """Send the base disk from `offset` on.

        Raises:
            HandoverError: it is not whole here. Others as `PeerLink.ask`.
        """
        base = self._plan.spec.base
        while offset < base.size_bytes:
            data = await self._ports.bases.read(base.digest, offset, self._size.next)
            if not data:
                raise HandoverError(f"base disk {base.digest[:12]}", f"ends at {offset} bytes here", "move the VM once it is whole")
            await self._send(BasePart(self._plan.migration, offset), data)
            offset += len(data)

    async def send_log(self, left_bytes: int = 0) -> None:
        """Send the VM's output until at most `left_bytes` of what exists now are left.

        Raises:
            As `PeerLink.ask`.
        """
        size = await self._ports.log.size()
        while size - self._log_sent > left_bytes:
            at, data = await self.next_log(self._size.next)
            if not data:
                return
            await self._send(LogPart(self._plan.migration, at), data)
            self._log_sent = at + len(data)

    async def next_log(self, count: int) -> tuple[int, bytes]:
        """Where the output that is to be sent next belongs, and at most `count` bytes of it; the caller sends them. If older output
        has been dropped here in the middle of the move, the target has been told where the log begins now.

        Raises:
            As `PeerLink.ask`.
        """
        *told, (at, data) = await self._ports.log.read(self._log_sent, count)
        for where, piece in told:
            await self._send(LogPart(self._plan.migration, where), piece)
        return at, data

    async def _send(self, question: BasePart | LogPart, data: bytes) -> None:
        asked_at_s = self._clock.monotonic_s()
        await self._link.ask(question, Accepted, data)
        self._size.took(len(data), self._clock.monotonic_s() - asked_at_s)
        self._figures.other_bytes += len(data)
