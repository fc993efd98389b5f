"""The fleet: which hosts are connected, and the last report of each. Memory only; what must survive a restart is in the book.

A host is *here* while its agent's connection stands. It is *lost* once nothing was heard of it for `lost_after_s`, counted from
its last report. After a restart of the control plane every host has `REJOIN_S` to come back, whatever its agent's pause between
dials. A connection over which no report came for that long is closed, so that every call to a host that hangs ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import msgspec

from architect.control.bell import Bell
from architect.control.sighting_index import Sighted, SightingIndex
from architect.errors import UnavailableError
from architect.model.ids import HostName, VmId
from architect.runtime.clock import Clock
from architect.runtime.rpc import Channel
from architect.wire.agent_messages import HostReport, VmObservation

REJOIN_S = 10.0


class DisconnectedError(UnavailableError):
    """There is no connection to the host's agent, or it broke during a call: ask again when it is back, the ids are the same."""


class Sighting(msgspec.Struct, frozen=True):
    """The last report of a host, when it came (monotonic), and whether it came over the connection that stands now."""

    report: HostReport
    heard_at_s: float
    is_here: bool


class Fleet:
    """Connections and reports by host name."""

    def __init__(self, clock: Clock, bell: Bell, lost_after_s: float) -> None:
        self._clock = clock
        self._bell = bell
        self._lost_after_s = lost_after_s
        self._began_at_s = clock.monotonic_s()
        self._channels: dict[HostName, Channel] = {}
        self._heard_at_s: dict[HostName, float] = {}
        self._reports: dict[HostName, Sighting] = {}
        self._index = SightingIndex()

    def join(self, host: HostName, channel: Channel) -> None:
        """The host's agent has introduced itself on `channel`; an older connection of the same host is closed."""
        older = self._channels.get(host)
        self._channels[host] = channel
        self._heard_at_s[host] = self._clock.monotonic_s()
        if older is not None:
            older.close()
        self._bell.ring()

    def leave(self, host: HostName, channel: Channel) -> None:
        """The connection has ended; nothing happens if a newer one stands."""
        if self._channels.get(host) is channel:
            del self._channels[host]
            if (sighting := self._reports.get(host)) is not None:
                self._put(host, msgspec.structs.replace(sighting, is_here=False))
            self._bell.ring()

    def hear(self, report: HostReport) -> None:
        """A report has come. Rings only if something is new in it."""
        now_s = self._clock.monotonic_s()
        before = self._reports.get(report.host)
        self._heard_at_s[report.host] = now_s
        self._put(report.host, Sighting(report, now_s, is_here=True))
        if before is None or not before.is_here or before.report != report:
            self._bell.ring()

    def forget(self, host: HostName) -> None:
        """The host was removed."""
        if (channel := self._channels.pop(host, None)) is not None:
            channel.close()
        self._heard_at_s.pop(host, None)
        self._reports.pop(host, None)
        self._index.put(host, ())

    def channel(self, host: HostName) -> Channel:
        """The connection to a host's agent.

        Raises:
            DisconnectedError: there is none now.
        """
        channel = self._channels.get(host)
        if channel is None or channel.is_closed:
            raise DisconnectedError(f"host {host}", "its agent is not connected", "see `architect host ls`, and try again")
        return channel

    async def call(self, host: HostName, request: Any, *, timeout_s: float) -> Any:
        """Ask a host's agent.

        Raises:
            DisconnectedError: it is not connected, or the connection broke.
            ArchitectError: what the agent reported.
        """
        channel = self.channel(host)
        try:
            return await channel.call(request, timeout_s=timeout_s)
        except UnavailableError as error:
            raise _disconnected(host, channel, error) from error

    async def stream(self, host: HostName, request: Any) -> AsyncGenerator[tuple[Any, bytes]]:
        """Ask a host's agent, and yield what it streams, its answer last. It ends at the latest when the host falls silent.

        Raises: as `call`.
        """
        channel = self.channel(host)
        try:
            async with contextlib.aclosing(channel.stream(request)) as stream:
                async for item in stream:
                    yield item
        except UnavailableError as error:
            raise _disconnected(host, channel, error) from error

    def amend(self, host: HostName, observation: VmObservation | None, vm: VmId) -> None:
        """An answer told more than the last report: take its word for this VM (None: it is gone) until the next report."""
        sighting = self._reports.get(host)
        if sighting is None:
            return
        vms = tuple(seen for seen in sighting.report.vms if seen.id != vm) + (() if observation is None else (observation,))
        report = msgspec.structs.replace(sighting.report, vms=vms)
        self._put(host, msgspec.structs.replace(sighting, report=report))
        self._bell.ring()

    def is_here(self, host: HostName) -> bool:
        """Whether its agent is connected."""
        return host in self._channels

    def is_lost(self, host: HostName) -> bool:
        """Whether it was not heard of for too long."""
        lost_after_s = self._lost_after_s if host in self._heard_at_s else max(self._lost_after_s, REJOIN_S)
        return self.silent_s(host) > lost_after_s

    def has_reported(self, host: HostName) -> bool:
        """Whether a report of it came since this process began."""
        return host in self._reports

    def silent_s(self, host: HostName) -> float:
        """For how long nothing was heard of it."""
        return self._clock.monotonic_s() - self._heard_at_s.get(host, self._began_at_s)

    def report(self, host: HostName) -> HostReport | None:
        """The last report over the connection that stands now."""
        sighting = self._reports.get(host)
        return sighting.report if sighting is not None and sighting.is_here else None

    def last_free_bytes(self, host: HostName) -> int:
        """The free memory that the host reported last, connected or not; 0 if it never did."""
        sighting = self._reports.get(host)
        return sighting.report.memory_free_bytes if sighting is not None else 0

    def held_bytes(self, host: HostName) -> dict[VmId, int]:
        """What exists of each VM's memory and disk, as the host reported last."""
        report = self.report(host)
        return {vm.id: vm.held_bytes for vm in report.vms} if report is not None else {}

    def reports(self) -> Mapping[HostName, HostReport]:
        """The reports of all hosts that are connected."""
        return {host: sighting.report for host, sighting in self._reports.items() if sighting.is_here}

    def sighted(self, vm: VmId) -> list[Sighted]:
        """All hosts that are connected and report the VM."""
        return self._index.of(vm)

    def close_silent(self) -> None:
        """Close connections over which nothing came for too long."""
        for host, channel in list(self._channels.items()):
            if self.is_lost(host):
                channel.close()
                self.leave(host, channel)

    def _put(self, host: HostName, sighting: Sighting) -> None:
        self._reports[host] = sighting
        self._index.put(host, sighting.report.vms if sighting.is_here else ())


def _disconnected(host: HostName, channel: Channel, error: UnavailableError) -> UnavailableError:
    """A broken connection as such; what the agent itself reported stays as it is."""
    return DisconnectedError(f"host {host}", error.cause, error.next_step) if channel.is_closed else error
