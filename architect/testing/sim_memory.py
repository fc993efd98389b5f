"""The memory process of a simulated VM: copies pages to its peer, answers demands after a post-copy cut, outlives the agent.

A VM's memory is a list of cells, each of `cell_bytes`; a cell takes its time on the link. So few cells stand for a large memory,
and a write dirties a whole cell.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from architect.errors import HandoverError, HostError, LostError
from architect.migration.handover_plan import MemoryCut, MemoryProgress, RoundStats
from architect.model.ids import MigrationId
from architect.model.sizes import PAGE_BYTES
from architect.testing.sim_world import gone, poll

if TYPE_CHECKING:
    from architect.testing.sim_host import SimHost
    from architect.testing.sim_machine import SimQemu, SimVm

BATCH_CELLS = 16
TCP_GIVES_UP_S = 15.0
NAP_S = 0.05


class SimSession:
    """One session between two memory processes."""

    def __init__(self, migration: MigrationId, target: SimMemory) -> None:
        self.migration = migration
        self.target = target
        self.source: SimMemory | None = None
        self.unsent: set[int] = set()
        self.missing: set[int] = set()
        self.bytes_sent = 0
        self.cut_root = ""
        self.has_cut = False
        self.is_applied = False
        self.is_dead = False
        self.heard_at_s = target.vm.world.loop.now_s

    def end(self) -> None:
        """One side has ended it, or died."""
        self.is_dead = True


class SimMemory:
    """One memory process."""

    def __init__(self, vm: SimVm, host: SimHost, *, is_full: bool) -> None:
        self.vm = vm
        self.host = host
        self.is_alive = True
        self.ram = list(vm.ram) if is_full else [0] * vm.page_count
        self.valid = set(range(vm.page_count))
        self.outgoing: SimSession | None = None
        self.incoming: SimSession | None = None
        self.is_stopping = False
        self.bandwidth_bytes_s = 0
        self._wanted: list[int] = []

    def check(self) -> None:
        """Raises HostError if the process is dead."""
        if not self.is_alive:
            raise gone(f"memory process of {self.vm.id} at {self.host.name}")

    def die(self) -> None:
        """The process ends; the pages stay with QEMU, the sessions do not."""
        self.is_alive = False
        self._end_sessions()

    def vanish(self) -> None:
        """Its machine is gone. A source learns that when TCP gives up; a target that fills hears nothing, as if a link were cut."""
        self.is_alive = False
        if self.incoming is not None:
            self.vm.world.loop.call_later(TCP_GIVES_UP_S, self.incoming.end)
        if self.outgoing is not None and not self.outgoing.has_cut:
            self.vm.world.loop.call_later(TCP_GIVES_UP_S, self.outgoing.end)

    def _end_sessions(self) -> None:
        for session in (self.outgoing, self.incoming):
            if session is not None:
                session.end()

    def is_watched(self) -> bool:
        """Whether somebody reads what the guest writes."""
        sessions = (self.outgoing, self.incoming)
        return len(self.valid) < self.vm.page_count or any(one is not None and not one.is_dead for one in sessions)

    def written(self, page: int) -> None:
        """The guest wrote a page."""
        if self.outgoing is not None and not self.outgoing.has_cut:
            self.outgoing.unsent.add(page)

    async def present(self, page: int, qemu: SimQemu) -> bool:
        """Until a page is valid: a fault. False if the machine ends meanwhile."""
        if page not in self.valid:
            self._wanted.append(page)
            await poll(lambda: page in self.valid or qemu.status.value != "running")
        return page in self.valid

    def open_target(self, migration: MigrationId) -> None:
        """Listen for a source."""
        self.check()
        self.incoming = SimSession(migration, self)

    async def open_source(self, migration: MigrationId, target: SimMemory | None) -> None:
        """Join the target's session."""
        self.check()
        if target is None or not target.is_alive or target.incoming is None or target.incoming.migration != migration:
            raise HostError("memory process of the target", "refuses the connection", "try the move again")
        await self.host.network.wait_passable(self.host.name, target.host.name)
        self.outgoing = target.incoming
        self.outgoing.source = self
        self.outgoing.unsent = set(range(self.vm.page_count))
        self.host.wake(self.vm.id)

    async def round(self) -> RoundStats:
        """Send what is unsent."""
        session = self._session()
        begin_s = self.vm.world.loop.now_s
        left = sorted(session.unsent)
        count, session.unsent = len(left), set()
        self.is_stopping = False
        try:
            while left and not self.is_stopping:
                batch, left = left[:BATCH_CELLS], left[BATCH_CELLS:]
                session.unsent.update(batch)
                await self._ship(session, batch)
        finally:
            session.unsent.update(left)
        duration_s = self.vm.world.loop.now_s - begin_s
        pages = self.vm.cell_bytes // PAGE_BYTES
        count -= len(left)
        return RoundStats(count * pages, count * self.vm.cell_bytes, max(duration_s, 1e-6), len(session.unsent) * pages)

    async def _ship(self, session: SimSession, pages: list[int]) -> None:
        await self.vm.world.wait_thawed(self.host.name)
        # A page counts as sent before it is read: a write that comes meanwhile makes it dirty again.
        session.unsent.difference_update(pages)
        values = [self.ram[page] for page in pages]
        try:
            await self.host.network.transfer(self.host.name, session.target.host.name, len(pages) * self.vm.cell_bytes)
            await self._hold_back(len(pages) * self.vm.cell_bytes)
            self._session()
        except BaseException:
            session.unsent.update(pages)
            raise
        for page, value in zip(pages, values, strict=True):
            session.target.ram[page] = value
        session.bytes_sent += len(pages) * self.vm.cell_bytes

    async def _hold_back(self, size_bytes: int) -> None:
        """Keep to the bandwidth limit, if there is one."""
        left = float(size_bytes)
        while left > 0 and (rate := self.bandwidth_bytes_s):
            nap_s = min(left / rate, NAP_S)
            await asyncio.sleep(nap_s)
            left -= nap_s * rate

    def progress(self) -> MemoryProgress:
        """How far it is."""
        session = self._session()
        pages_left = len(session.unsent) * (self.vm.cell_bytes // PAGE_BYTES)
        return MemoryProgress(session.bytes_sent, pages_left, link_bytes=session.bytes_sent)

    async def cut(self, postcopy: bool) -> MemoryCut:
        """Freeze what the guest has."""
        session = self._session()
        if postcopy:
            session.missing = set(session.unsent)
            await self._ship(session, [])
        else:
            await self.round()
        session.has_cut = True
        session.cut_root = self.root()
        if postcopy:
            self.vm.world.spawn(self._push(session))
        return MemoryCut(session.cut_root, len(session.missing), session.bytes_sent)

    def root(self) -> str:
        """The hash of all pages."""
        return f"{hash(tuple(self.ram)) & (1 << 64) - 1:016x}"

    async def apply_cut(self, root: str, postcopy: bool) -> None:
        """Everything sent is in place."""
        self.check()
        session = self.incoming
        if session is None:
            raise HandoverError(f"vm {self.vm.id}", "no session is open", "try again")
        await poll(lambda: session.has_cut or session.is_dead)
        if not session.has_cut:
            raise HandoverError(f"vm {self.vm.id}", "the source's memory process is gone", "try again")
        if postcopy:
            self.valid -= session.missing
        elif self.root() != root:
            raise HandoverError(f"vm {self.vm.id}", "its memory here differs from the source's", "report this")
        session.is_applied = True

    async def wait_all_present(self) -> None:
        """Until nothing is missing."""
        session = self.incoming
        await poll(lambda: len(self.valid) == self.vm.page_count or not self.is_alive or session is None or session.is_dead)
        if len(self.valid) < self.vm.page_count:
            raise LostError(f"vm {self.vm.id}", "pages are missing and their source is gone", "restore it")
        self.check()

    def silent_s(self) -> float:
        """How long nothing was heard from the source's host. It is looked at often, or the answer would be too long."""
        self.check()
        session, now_s = self.incoming, self.vm.world.loop.now_s
        if session is None or session.source is None:
            return 0.0
        if not self.host.network.is_cut(self.host.name, session.source.host.name):
            session.heard_at_s = now_s
        return now_s - session.heard_at_s

    async def serve_until_done(self) -> None:
        """Until the target has all."""
        session = self._session()
        await poll(lambda: len(session.target.valid) == self.vm.page_count or not self.is_alive or session.is_dead)
        if len(session.target.valid) < self.vm.page_count:
            self._session()

    def is_serving(self) -> bool:
        """Whether a post-copy goes on."""
        session = self.outgoing
        return self.is_alive and session is not None and not session.is_dead and bool(session.missing)

    def abort(self) -> None:
        """End all sessions."""
        self._end_sessions()
        self.outgoing = self.incoming = None

    async def _push(self, session: SimSession) -> None:
        target = session.target
        await poll(lambda: session.is_applied or session.is_dead)
        rest = deque(sorted(session.missing))
        while rest and not session.is_dead:
            page = target.take_wanted()
            page = page if page is not None else rest.popleft()
            if page in target.valid:
                continue
            await self.vm.world.wait_thawed(self.host.name)
            await self.host.network.transfer(self.host.name, target.host.name, self.vm.cell_bytes)
            await self._hold_back(self.vm.cell_bytes)
            if not session.is_dead and page not in target.valid:
                target.ram[page] = self.ram[page]
                target.valid.add(page)

    def take_wanted(self) -> int | None:
        """The next page that the guest waits for."""
        while self._wanted:
            page = self._wanted.pop(0)
            if page not in self.valid:
                return page
        return None

    def _session(self) -> SimSession:
        self.check()
        session = self.outgoing
        if session is None or session.is_dead:
            raise HostError(f"memory process of {self.vm.id}", "the target's memory process is gone", "try the move again")
        return session
