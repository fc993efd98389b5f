"""The live switch of a VM's packets from the source host to the target host, in the steps that a handover sequences.

    target: TargetFlows.hold        its tap takes and holds packets, nobody reads it yet
    source: SteeredVm.steer         the edge sends to the target; what the source still sends is taken
    source: SteeredVm.settle        what was on its way to the source has arrived there (from the measured round trip)
    source: SourceFlows.set_forward what comes later still goes on to the target
    source: SourceFlows.wait_drained   the guest, which still runs, has taken all that its tap held
    (pause)
    source: SourceFlows.relay_rest  what a guest that was too slow has left goes on to the target: out of order, but not lost
    (copy, resume at the target, which finds in its tap all that came meanwhile, in order)
    source: SourceFlows.wait_quiet  nothing comes any more: the source may go

The order matters: a QEMU that is stopped swallows a frame, so nothing may enter the source's tap after the pause; and packets sent
to the source after the steer would overtake. To undo it: SourceFlows.set_local, then TargetFlows.relay, which sends what the target
holds back in order, then SteeredVm.steer to the source.

The classes fit the ports of the migration package. All steps may be repeated.
"""

from __future__ import annotations

import asyncio

from architect.conduit.edge_client import EdgeClient
from architect.conduit.host_datapath import HostDatapath
from architect.errors import HostError
from architect.model.handover_span import TimedAway
from architect.model.ids import VmId, Vni
from architect.runtime.clock import Clock, SystemClock

QUIET_POLL_S = 0.005
QUIET_S_MIN = 0.02
FIRST_PACKET_POLL_S = 0.005


class SteeredVm:
    """A VM at its edge."""

    def __init__(self, edge: EdgeClient, vm: VmId, vni: Vni) -> None:
        self._edge = edge
        self._vm = vm
        self._vni = vni

    async def steer(self, term: int, host: str, previous: str) -> TimedAway:
        """As `EdgeClient.steer`."""
        return await self._edge.steer(self._vm, self._vni, term, host, previous)

    async def settle(self) -> None:
        """As `EdgeClient.settle`."""
        await self._edge.settle()


class SourceFlows:
    """The VM's packets at the source.

    :param target_address: the target's underlay address, from where relayed packets are taken if the move is undone; None: whom the
        port forwarded to, or was told of before.
    :param edge: gives the round trip that `wait_quiet` is measured by.
    """

    def __init__(
        self, datapath: HostDatapath, vni: Vni, target_address: str | None, edge: EdgeClient, clock: Clock | None = None
    ) -> None:
        self._datapath = datapath
        self._vni = vni
        self._target_address = target_address
        self._edge = edge
        self._clock = clock or SystemClock()

    async def set_forward(self, target_address: str) -> None:
        """Packets that still arrive go on to the target host.

        Raises:
            NotFoundError: the VM has no port here.
        """
        self._datapath.set_forward(self._vni, target_address)

    async def set_local(self) -> None:
        """Packets go to the VM's tap again, also those that the target relays.

        Raises:
            NotFoundError: the VM has no port here.
        """
        self._datapath.set_local(self._vni, peer_address=self._target_address)

    async def wait_drained(self, timeout_s: float) -> None:
        """Wait until the running guest has taken all packets from its tap.

        Raises:
            HostError: it has not by then: it does not run, or packets come faster than it takes them.
        """
        tap = self._datapath.tap(self._vni)
        if not await tap.wait_drained(timeout_s):
            raise HostError(
                f"tap {tap.name}",
                f"the guest has not taken its packets in {timeout_s} s",
                "see whether the guest hangs, then try again",
            )

    async def relay_rest(self, target_address: str) -> None:
        """The guest is paused: what it has not taken from its tap goes on to the target host.

        Raises:
            NotFoundError: the VM has no port here.
            HostError: the tap is gone.
        """
        if not self._datapath.tap(self._vni).is_empty():
            await asyncio.to_thread(self._datapath.relay, self._vni, target_address)

    async def wait_quiet(self, timeout_s: float) -> None:
        """Wait until nothing was forwarded for two round trips: the source may go.

        Raises:
            HostError: packets still come by then.
        """
        quiet_s = max(2 * (self._edge.round_trip.least_s or 0.0), QUIET_S_MIN)
        begin_s = since_s = self._clock.monotonic_s()
        forwarded = self._forwarded()
        while (now_s := self._clock.monotonic_s()) - since_s < quiet_s:
            if now_s - begin_s > timeout_s:
                raise HostError(
                    f"port of VM {self._vni}",
                    f"packets still come after {timeout_s} s",
                    "see that the edge was steered to the target",
                )
            await self._clock.sleep(QUIET_POLL_S)
            if (seen := self._forwarded()) != forwarded:
                forwarded, since_s = seen, self._clock.monotonic_s()

    def _forwarded(self) -> int:
        return self._datapath.forwarded_packets(self._vni)


class TargetFlows:
    """The VM's packets at the target.

    :param source_address: the source's underlay address, from where forwarded packets are taken.
    """

    def __init__(self, datapath: HostDatapath, vni: Vni, source_address: str, clock: Clock | None = None) -> None:
        self._datapath = datapath
        self._vni = vni
        self._source_address = source_address
        self._clock = clock or SystemClock()

    async def hold(self) -> None:
        """The tap takes packets and holds them for the guest; a blank one first, which the waiting QEMU may lose.

        Raises:
            NotFoundError: the VM has no port here.
            HostError: the tap is gone.
        """
        self._datapath.tap(self._vni).offer_blank()
        self._datapath.set_local(self._vni, peer_address=self._source_address)

    async def set_local(self) -> None:
        """The guest runs: packets go to its tap (so since `hold`). Late ones from the source are still taken.

        Raises:
            NotFoundError: the VM has no port here.
        """
        self._datapath.set_local(self._vni, peer_address=self._source_address)

    async def wait_first_packet(self) -> float:
        """Wait until the guest has sent its first packet here; returns when that was, by CLOCK_MONOTONIC."""
        while (first_s := self._datapath.first_from_vm_s(self._vni)) is None:
            await self._clock.sleep(FIRST_PACKET_POLL_S)
        return first_s

    async def relay(self, source_address: str) -> None:
        """The VM stays at the source: send what is held, and what still arrives, on to it, in order.

        Raises:
            NotFoundError: the VM has no port here.
            HostError: the tap is gone, and what it held with it.
        """
        await asyncio.to_thread(self._datapath.relay, self._vni, source_address)
