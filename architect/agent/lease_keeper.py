"""Keeps this host's lease (`migration.host_lease`): asks store and edge about its VMs, pauses them when neither has answered for
too long, and lets them go on, or destroys them, when one does.

Each VM is looked at by itself: a newer record that names another host, or the end of its log, destroys the copy here; a newer term
at the edge pauses it until the log says more. VMs that are coming or leaving are their handover's, which knows how to end without
store and edge; they are looked at again when it is over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from architect.agent.host import Host
from architect.agent.hosted_vm import HostedVm
from architect.agent.moves import Moves
from architect.agent.vm_record import VmPhase
from architect.agent.vm_table import VmTable
from architect.errors import ArchitectError
from architect.migration.found_vm import FoundVerdict, resolve_found_running
from architect.migration.host_lease import HostLease, Reading, after_contact, after_look, read_clocks
from architect.model.ids import HostName, VmId
from architect.wire.edge_messages import EdgeVm

CONTACTS_PER_LEASE = 5
LOOK_EVERY_S = 0.5
FIRST_LOOK_S = 3.0
NOBODY = VmId("vm-000000000000")
"""Asked about where no VM is, so that the first one finds a lease."""

_log = logging.getLogger(__name__)


class LeaseKeeper:
    """The lease of one host, kept."""

    def __init__(self, host: Host, table: VmTable, moves: Moves, read: Callable[[], Reading] = read_clocks) -> None:
        self._host = host
        self._table = table
        self._moves = moves
        self._read = read
        self._lease = HostLease(host.config.lease_s)

    async def run(self) -> None:
        """Keep it, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_asking(self._ask_store))
            group.create_task(self._keep_asking(self._ask_edge))
            group.create_task(self._keep_looking())

    async def _keep_asking(self, ask: Callable[[Reading], Awaitable[None]]) -> None:
        while True:
            asked_at = self._read()
            try:
                await ask(asked_at)
            except ArchitectError as error:
                _log.debug("lease: %s", error)
            await self._host.clock.sleep(self._host.config.lease_s / CONTACTS_PER_LEASE)

    async def _ask_store(self, asked_at: Reading) -> None:
        name = HostName(self._host.config.name)
        await self._host.ownership.latest(NOBODY)
        self._contact(asked_at)
        for vm in self._ours():
            asked_at = self._read()
            latest = await self._host.ownership.latest(vm.record.id)
            self._contact(asked_at)
            if not self._is_ours(vm) or latest is None or latest.term < vm.record.term:
                continue
            if resolve_found_running(name, latest) is FoundVerdict.DESTROY:
                _log.warning("vm %s: record %d: %s by host %s", vm.record.request.name, latest.term, latest.kind, latest.host)
                await vm.destroy()
                self._table.drop(vm.record.id)
            else:
                await self._go_on(vm)

    async def _ask_edge(self, asked_at: Reading) -> None:
        seen = {found.vm: found for found in (await self._host.edge.read()).vms}
        self._contact(asked_at)
        for vm in self._ours():
            found = seen.get(vm.record.id)
            if found is None:
                continue
            if self._is_anothers(vm, found):
                await self._pause(vm, f"the edge has seen term {found.term}, this host has {vm.record.term}")
            elif found.host == self._host.config.address:
                await self._go_on(vm)

    def _is_anothers(self, vm: HostedVm, found: EdgeVm) -> bool:
        return found.term > vm.record.term and found.host not in ("", self._host.config.address)

    async def _keep_looking(self) -> None:
        """Pause what must not run, each time it is found to run."""
        await self._host.clock.sleep(FIRST_LOOK_S)
        while True:
            before, self._lease = self._lease, after_look(self._lease, self._read())
            if before.is_held and not self._lease.is_held:
                _log.warning("lease: neither store nor edge has answered for %g s", self._lease.length_s)
            if not self._lease.is_held:
                for vm in self._ours():
                    await self._pause(vm, f"host {self._host.config.name} reaches neither ownership log nor edge")
            await self._host.clock.sleep(LOOK_EVERY_S)

    def _contact(self, asked_at: Reading) -> None:
        self._lease = after_contact(self._lease, asked_at, self._read())

    def _ours(self) -> list[HostedVm]:
        return [vm for vm in self._table if self._is_ours(vm)]

    def _is_ours(self, vm: HostedVm) -> bool:
        """Whether the VM is here to stay, as far as we know."""
        is_still = vm.record.phase is VmPhase.RUNNING and not self._moves.source.is_moving(vm.record.id)
        return is_still and vm.parts is not None and self._table.get(vm.record.id) is vm

    async def _pause(self, vm: HostedVm, why: str) -> None:
        if vm.parts is None or vm.paused_because:
            return
        try:
            await vm.parts.machine.pause()
        except ArchitectError as error:
            _log.warning("vm %s: not paused: %s", vm.record.request.name, error)
            return
        _log.warning("vm %s: paused: %s", vm.record.request.name, why)
        vm.paused_because = why
        self._host.changed()

    async def _go_on(self, vm: HostedVm) -> None:
        """It is still ours: let it run if we have paused it."""
        if not vm.paused_because or vm.parts is None or not self._lease.is_held:
            return
        try:
            await vm.parts.machine.resume()
        except ArchitectError as error:
            _log.warning("vm %s: does not go on: %s", vm.record.request.name, error)
            return
        _log.info("vm %s: goes on by term %d", vm.record.request.name, vm.record.term)
        vm.paused_because = ""
        self._host.changed()
        if vm.guest is not None:
            try:
                await vm.guest.sync_clock()
            except ArchitectError as error:
                _log.warning("vm %s: its clock: %s", vm.record.request.name, error)
