"""The reconciler: compares what is wanted with what the reports show, and starts what is missing. Level-triggered.

It looks after every change and at least every `LOOK_EVERY_S`, and remembers nothing that it could not see again: after a restart
it takes up every creation, move, stop and removal where it stands. One look::

    close silent connections → notices, deadlines of moves → silent hosts: ask their provider
        → VMs from the reports (seen, adopted, missing, lost; filling) → jobs → evacuation → acknowledge
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping

import msgspec

from architect.control.ask_provider import ask_about_silent
from architect.control.end_vm import carry_out_stop, clear_tombstone, release_edge
from architect.control.evacuate import evacuate, note_refusal
from architect.control.fabric import Fabric
from architect.control.filling import Filling
from architect.control.move_deadlines import take_up_deadlines
from architect.control.move_vm import drive_move
from architect.control.notices import take_over_notices
from architect.control.records import Desired, EventKind, HostRecord, VmRecord
from architect.control.rooms import is_gone
from architect.control.run_vm import create_vm
from architect.control.sighting_index import Sighted
from architect.control.sightings import after_sighting, owner_of, write_sighting
from architect.errors import ArchitectError
from architect.model.ids import HostName, MigrationId, VmId
from architect.model.vm_state import VmState
from architect.wire.agent_messages import AcknowledgeNotice, HostReport
from architect.wire.edge_messages import DefineVm

LOOK_EVERY_S = 1.0
ACKNOWLEDGE_TIMEOUT_S = 10.0

_log = logging.getLogger(__name__)


class Reconciler:
    """Looks and starts. Memory only: since when a VM is missing, which hosts were told to be lost, which moves were seen to end."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._missing_since_s: dict[VmId, float] = {}
        self._told_lost: set[HostName] = set()
        self._open_moves: set[MigrationId] = set()
        self._edge_sessions = 0
        self._filling = Filling(fabric)

    async def run(self) -> None:
        """Look for ever."""
        seen = -1
        while True:
            try:
                await self.look()
            except ArchitectError as error:  # the database refused: nothing was done, the next look tries again
                _log.error("%s", error)
                await self._fabric.clock.sleep(LOOK_EVERY_S)
            seen = await self._fabric.bell.wait_rung(seen, LOOK_EVERY_S)

    async def look(self) -> None:
        """One look at everything."""
        self._fabric.fleet.close_silent()
        await take_over_notices(self._fabric)
        await take_up_deadlines(self._fabric)
        await self._tell_lost_hosts()
        ask_about_silent(self._fabric)
        await self._take_over_reports()
        await self._filling.look(self._fabric.fleet.reports())
        self._start_jobs()
        self._note_ended_moves()
        await evacuate(self._fabric)
        self._acknowledge()

    async def _tell_lost_hosts(self) -> None:
        fleet, book = self._fabric.fleet, self._fabric.book
        lost = {name for name in book.hosts if fleet.is_lost(name)}
        news, back = lost - self._told_lost, self._told_lost - lost
        if news or back:
            async with book.change() as change:
                for name in sorted(news):
                    change.say(EventKind.HOST_LOST, f"not heard of for {self._fabric.config.host_lost_after_s:g} s", host=name)
                for name in sorted(back & set(book.hosts)):
                    change.say(EventKind.HOST_BACK, host=name)
            self._told_lost = lost

    async def _take_over_reports(self) -> None:
        """Bring the records up to the reports, in one change if there is anything new."""
        book, reports = self._fabric.book, self._fabric.fleet.reports()
        living = [record for record in book.vms.values() if not record.is_tombstone]
        verdicts = [(record, after) for record in living if (after := self._verdict(record)) != record]
        for vm in set(self._missing_since_s) - set(book.vms):
            del self._missing_since_s[vm]
        strangers = self._strangers(reports)
        if not verdicts and not strangers:
            return
        async with book.change() as change:
            for before, after in verdicts:
                if book.vms.get(before.id) == before:
                    write_sighting(before, after, change)
            for record in strangers:
                if record.id not in book.vms:
                    change.put(record)
                    change.say(EventKind.VM_ADOPTED, "a host reports it", vm=record)

    def _verdict(self, record: VmRecord) -> VmRecord:
        """The record as the reports have it; LOST if nobody has it any more."""
        owner = owner_of(record, self._fabric.fleet.sighted(record.id))
        if owner is not None and not (record.state is VmState.CREATING and self._fabric.jobs.is_running(f"create {record.id}")):
            self._missing_since_s.pop(record.id, None)
            return after_sighting(record, owner)
        is_settling = record.state is VmState.CREATING or self._fabric.book.move_of(record.id) is not None
        if owner is not None or record.state.is_terminal or is_settling:
            self._missing_since_s.pop(record.id, None)
            return record
        return self._verdict_unseen(record)

    def _verdict_unseen(self, record: VmRecord) -> VmRecord:
        fleet, now_s = self._fabric.fleet, self._fabric.clock.monotonic_s()
        if is_gone(self._fabric, record.host):
            reason = self._why_lost(record, self._fabric.book.hosts.get(record.host))
            return msgspec.structs.replace(record, state=VmState.LOST, reason=reason)
        if fleet.is_lost(record.host):
            self._missing_since_s.pop(record.id, None)
            return msgspec.structs.replace(record, reason=f"host {record.host} is silent; it may run there all the same")
        if fleet.report(record.host) is None:
            self._missing_since_s.pop(record.id, None)
            return record
        if now_s - self._missing_since_s.setdefault(record.id, now_s) <= self._fabric.config.host_lost_after_s:
            return record
        return msgspec.structs.replace(
            record, state=VmState.LOST, reason=f"host {record.host} has it no longer; no checkpoint exists"
        )

    def _why_lost(self, record: VmRecord, host: HostRecord | None) -> str:
        if host is None or host.notice is None:
            known = " (its provider has it no more)" if record.host in self._fabric.destroyed else ""
            return f"host {record.host} vanished without notice{known}; no checkpoint exists"
        tried = self._fabric.stuck.get(record.id)
        detail = f": {tried}" if tried else ""
        return f"host {record.host} was taken away before the vm had left{detail}; no checkpoint exists"

    def _strangers(self, reports: Mapping[HostName, HostReport]) -> list[VmRecord]:
        """VMs that hosts run and nobody here knows: another control plane's memory was lost, theirs was not."""
        book = self._fabric.book
        strangers: dict[VmId, VmRecord] = {}
        for host, report in reports.items():
            for seen in report.vms:
                known = strangers.get(seen.id)
                if seen.id in book.vms or seen.spec is None or seen.term == 0 or (known is not None and known.term >= seen.term):
                    continue
                request = seen.spec.request
                if book.is_named(request.name):
                    request = msgspec.structs.replace(request, name=seen.id)
                record = VmRecord(request, self._fabric.clock.wall_s(), host=host, at_edge=not seen.state.is_terminal)
                strangers[seen.id] = after_sighting(record, Sighted(host, seen))
        return list(strangers.values())

    def _start_jobs(self) -> None:
        fabric = self._fabric
        for move in fabric.book.open_moves():
            fabric.jobs.start(f"move {move.id}", functools.partial(drive_move, fabric, move.id))
        for record in fabric.book.vms.values():
            if fabric.book.move_of(record.id) is None:
                self._start_vm_job(record)
        if fabric.edge.is_connected and self._edge_sessions != fabric.edge.sessions:
            sessions = fabric.edge.sessions
            if fabric.jobs.start("define at edge", functools.partial(define_again, fabric)):
                self._edge_sessions = sessions

    def _start_vm_job(self, record: VmRecord) -> None:
        fabric, vm = self._fabric, record.id
        if fabric.jobs.is_running(f"create {vm}"):
            return
        if record.is_tombstone:
            hosts = self._hosts_to_clear(record)
            is_waiting = record.host in fabric.book.hosts and record.host not in hosts
            if hosts or (record.at_edge and fabric.edge.is_connected) or not (is_waiting or record.at_edge):
                fabric.jobs.start(f"clear {vm}", functools.partial(clear_tombstone, fabric, vm, hosts))
        elif record.state is VmState.CREATING:
            fabric.jobs.start(f"create {vm}", functools.partial(create_vm, fabric, vm))
        elif record.desired is Desired.STOPPED and not record.state.is_terminal and fabric.fleet.is_here(record.host):
            fabric.jobs.start(f"stop {vm}", functools.partial(carry_out_stop, fabric, vm))
        elif record.state in (VmState.EXITED, VmState.STOPPED) and record.at_edge and fabric.edge.is_connected:
            fabric.jobs.start(f"release {vm}", functools.partial(_release, fabric, vm))

    def _hosts_to_clear(self, record: VmRecord) -> list[HostName]:
        hosts = {sighting.host for sighting in self._fabric.fleet.sighted(record.id)}
        if self._fabric.fleet.report(record.host) is not None:
            hosts.add(record.host)
        return sorted(hosts)

    def _note_ended_moves(self) -> None:
        book = self._fabric.book
        for ended in [
            identity for identity in self._open_moves if identity not in book.moves or book.moves[identity].state.is_terminal
        ]:
            self._open_moves.discard(ended)
            if (move := book.moves.get(ended)) is not None:
                note_refusal(self._fabric, move)
        self._open_moves |= {move.id for move in book.open_moves()}

    def _acknowledge(self) -> None:
        """Tell hosts that leave and are empty that they may go."""
        fabric = self._fabric
        occupied = {vm.host for vm in fabric.book.vms.values() if not vm.state.is_terminal}
        occupied |= {end for move in fabric.book.open_moves() for end in (move.source, move.target)}
        for host in fabric.book.hosts.values():
            notice = host.notice
            if notice is None or notice.id == host.acknowledged or host.name in occupied or not fabric.fleet.is_here(host.name):
                continue
            fabric.jobs.start(f"acknowledge {host.name}", functools.partial(_acknowledge, fabric, host.name, notice.id))


async def define_again(fabric: Fabric) -> None:
    """Tell an edge that came back what should be there; it is idempotent."""
    for vm in list(fabric.book.vms):
        record = fabric.book.vms.get(vm)
        if (
            record is None
            or record.is_tombstone
            or not record.at_edge
            or record.state.is_terminal
            or record.state is VmState.CREATING
        ):
            continue
        request = record.request
        try:
            answer = await fabric.edge.call(DefineVm(vm, request.vni, request.address, request.publish))
        except ArchitectError as error:
            _log.warning("edge services of %s: %s", request.name, error)
            continue
        async with fabric.book.change() as change:
            current = fabric.book.vms.get(vm)
            if current is not None and current.endpoints != answer.endpoints:
                change.put(msgspec.structs.replace(current, endpoints=answer.endpoints))


async def _release(fabric: Fabric, vm: VmId) -> None:
    await release_edge(fabric, vm)


async def _acknowledge(fabric: Fabric, host: HostName, notice: str) -> None:
    try:
        await fabric.fleet.call(host, AcknowledgeNotice(notice), timeout_s=ACKNOWLEDGE_TIMEOUT_S)
    except ArchitectError as error:
        _log.warning("host %s: %s", host, error)
        await fabric.clock.sleep(LOOK_EVERY_S)
        return
    async with fabric.book.change() as change:
        if (record := fabric.book.hosts.get(host)) is not None:
            change.put(msgspec.structs.replace(record, acknowledged=notice))
            change.say(EventKind.HOST_EMPTY, "the notice may proceed", host=host)
