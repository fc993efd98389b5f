"""Packets of a simulated VM: a client sends numbered ones through the edge; hosts keep, forward or drop them."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import TYPE_CHECKING

from architect.errors import HostError, NotFoundError
from architect.model.ids import VmId
from architect.testing.sim_machine import QemuStatus
from architect.testing.sim_world import poll

if TYPE_CHECKING:
    from architect.testing.sim_edge import SimEdge
    from architect.testing.sim_host import SimHost
    from architect.testing.sim_world import World

HOPS_MAX = 4


class FlowMode(StrEnum):
    """What a host does with a VM's packets."""

    BLOCKED = "blocked"
    LOCAL = "local"
    FORWARD = "forward"


class SimFlows:
    """All VMs' packets at one host."""

    def __init__(self, host: SimHost) -> None:
        self.host = host
        self.modes: dict[VmId, tuple[FlowMode, str]] = {}
        self.taps: dict[VmId, list[int]] = {}
        self.forwarded_at_s = 0.0
        self.delivered: list[int] = []

    def add(self, vm: VmId) -> None:
        """A new tap, that takes nothing yet."""
        self.modes[vm] = (FlowMode.BLOCKED, "")
        self.taps[vm] = []

    def set_local(self, vm: VmId) -> None:
        """Packets go to the tap."""
        self._check(vm)
        self.modes[vm] = (FlowMode.LOCAL, "")

    def set_forward(self, vm: VmId, address: str) -> None:
        """Packets go to another host."""
        self._check(vm)
        self.modes[vm] = (FlowMode.FORWARD, address)

    def _check(self, vm: VmId) -> None:
        if vm not in self.taps:
            raise NotFoundError(f"port of {vm}", f"host {self.host.name} has none", "see whether the VM is there")

    def forget(self, vm: VmId) -> None:
        """The tap is deleted."""
        self.modes.pop(vm, None)
        self.taps.pop(vm, None)

    def arrive(self, vm: VmId, packet: int, hops: int = 0) -> None:
        """A packet comes."""
        mode = self.modes.get(vm)
        if mode is None or mode[0] is FlowMode.BLOCKED or hops > HOPS_MAX:
            return
        if mode[0] is FlowMode.FORWARD:
            self.forwarded_at_s = self.host.world.loop.now_s
            other = self.host.neighbour(mode[1])
            self.host.world.loop.call_later(0.0005, lambda: other.flows.arrive(vm, packet, hops + 1))
            return
        self.taps[vm].append(packet)
        copy = self.host.qemus.get(vm)
        if copy is not None and copy.status is QemuStatus.RUNNING and not self.host.world.is_frozen(self.host.name):
            self.take(vm)
        # A stopped QEMU still takes one frame out of its tap, and never gives it to a guest that goes on elsewhere.
        if copy is not None and copy.status is QemuStatus.PAUSED:
            self.taps[vm].pop(0)

    def take(self, vm: VmId) -> None:
        """The running guest reads its tap."""
        if self.taps.get(vm):
            self.delivered += self.taps[vm]
            self.taps[vm] = []

    async def relay(self, vm: VmId, address: str) -> None:
        """What waits goes to another host, and what comes follows."""
        waiting, self.taps[vm] = self.taps.get(vm, []), []
        self.set_forward(vm, address)
        other = self.host.neighbour(address)
        await asyncio.sleep(0.0005)
        for packet in waiting:
            other.flows.arrive(vm, packet, 1)

    async def wait_drained(self, vm: VmId, timeout_s: float) -> None:
        """Until the tap is empty."""
        end_s = self.host.world.loop.now_s + timeout_s
        await poll(lambda: not self.taps.get(vm) or self.host.world.loop.now_s > end_s)
        if self.taps.get(vm):
            raise HostError(f"vm {vm}", "its tap does not drain", "see whether the guest is stuck")

    async def wait_quiet(self, timeout_s: float) -> None:
        """Until nothing was forwarded for a while."""
        end_s = self.host.world.loop.now_s + timeout_s
        while self.host.world.loop.now_s - self.forwarded_at_s < 0.02:
            if self.host.world.loop.now_s > end_s:
                raise HostError("flows", "packets still come", "wait")
            await asyncio.sleep(0.005)


class SimClient:
    """Sends packets to a VM, and knows which have arrived."""

    def __init__(self, world: World, edge: SimEdge, hosts: dict[str, SimHost], vm: VmId, interval_s: float) -> None:
        self.sent = 0
        self.delivered: list[int] = []
        self.is_sending = True
        self._world = world
        self._edge = edge
        self._hosts = hosts
        self._vm = vm
        self._interval_s = interval_s

    async def run(self) -> None:
        """Send for ever."""
        while True:
            await asyncio.sleep(self._interval_s if self.is_sending else 1.0)
            entry = self._edge.entry(self._vm)
            if entry is None or not self.is_sending:
                continue
            self.sent += 1
            arrive = self._hosts[entry.host].flows.arrive
            self._world.loop.call_later(self._world.random.uniform(0.0005, 0.003), arrive, self._vm, self.sent)
