"""The hosts of a local fabric: made, adopted and destroyed while the supervisor runs.

A host is recorded before anything of it exists and forgotten after nothing of it is left, so whoever dies in between, the next
supervisor finishes.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable

import msgspec

from architect.clouds.local.configuration import write_agent
from architect.clouds.local.demolition import destroy_host
from architect.clouds.local.layout import PROVIDERS, REGIONS, FabricLayout, StateFolder, free_slot, host_mark
from architect.clouds.local.metadata import MetadataServer, metadata_application, serve_metadata
from architect.clouds.local.network import ensure_host
from architect.clouds.local.notice_board import NoticeBoard
from architect.clouds.local.options import Commands
from architect.clouds.local.process_table import ProcessTable, Role
from architect.clouds.local.record import HostRecord, PostedNotice, PresenceState, RecordStore, agent_name
from architect.errors import ConflictError, UsageError
from architect.model.ids import check_name
from architect.runtime.clock import Clock
from architect.runtime.namespaces import identify_namespace, namespace_path
from architect.runtime.processes import stop_process

REAP_S = 5.0
AGENT_GRACE_S = 5.0


class LocalHosts:
    """All hosts of one fabric.

    :param acknowledged: told the host's name when its guest lets a notice proceed.
    """

    def __init__(
        self,
        folder: StateFolder,
        layout: FabricLayout,
        store: RecordStore,
        table: ProcessTable,
        commands: Commands,
        clock: Clock,
        acknowledged: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._layout = layout
        self._store = store
        self._table = table
        self._commands = commands
        self._clock = clock
        self._acknowledged = acknowledged
        self._boards: dict[str, NoticeBoard] = {}
        self._servers: dict[str, MetadataServer] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def adopt_all(self) -> None:
        """Bring every recorded host to what its record says: what was being destroyed goes, what is there stays, what lacks its
        namespace (nothing of it can live) is made anew."""
        for host in list(self._store.record.hosts.values()):
            if host.state is PresenceState.DESTROYING:
                await self.destroy(host.name)
                continue
            if identify_namespace(namespace_path(self._layout.host_namespace(host.name))) is None:
                await asyncio.to_thread(destroy_host, self._folder, self._layout, host)
                host = msgspec.structs.replace(host, instance=_instance(host.provider), notice=None)
                self._store.change(self._store.record.with_host(host))
            async with self._lock(host.name):
                await self._open(host)

    async def create(self, provider: str, name: str = "") -> HostRecord:
        """Make a host with its agent; a name that exists with this provider is that host.

        Raises:
            UsageError, ConflictError, CapacityError: provider or name cannot be, the name is another one's, no slot is free.
            HostError: the kernel refuses; nothing is left.
        """
        if provider not in PROVIDERS:
            raise UsageError(f"provider {provider!r}", "is no local provider", f"choose one of {', '.join(PROVIDERS)}")
        record = self._store.record
        number = record.numbers.get(provider, 0) + (0 if name else 1)
        name = check_name(name or f"{provider}-{number}", "host")
        existing = record.hosts.get(name)
        if existing is not None:
            if existing.provider == provider and existing.state is PresenceState.PRESENT:
                return existing
            raise ConflictError(f"host {name}", f"exists ({existing.provider}, {existing.state})", "choose another name")
        slot = free_slot({host.slot for host in record.hosts.values()})
        host = HostRecord(name, provider, REGIONS[provider], _instance(provider), slot)
        numbered = msgspec.structs.replace(record, numbers={**record.numbers, provider: number})
        self._store.change(numbered.with_host(host))
        try:
            async with self._lock(name):
                await self._open(host)
        except BaseException:
            await asyncio.shield(self.destroy(name))
            raise
        return host

    async def destroy(self, name: str, *, gently: bool = False) -> None:
        """Destroy a host as a cloud does, with everything in it; `gently` lets its agent end first. Idempotent.

        Raises:
            HostError: something does not go away; the host stays recorded as being destroyed.
        """
        host = self._store.record.hosts.get(name)
        if host is None:
            return
        self._store.change(self._store.record.with_host(msgspec.structs.replace(host, state=PresenceState.DESTROYING)))
        async with self._lock(name):
            known = self._store.record.hosts.get(name)
            if known is None or known.instance != host.instance:
                return  # somebody else's request destroyed it while we waited
            running = await self._table.drop(agent_name(name))
            if running is not None and gently:
                await stop_process(running.identity, AGENT_GRACE_S)
            await self._close_server(name)
            await asyncio.to_thread(destroy_host, self._folder, self._layout, host)
            if running is not None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(REAP_S):
                        await running.wait()
            self._store.change(self._store.record.without_host(name))

    def post(self, name: str, notice: PostedNotice) -> None:
        """Record a notice and show it at the host's metadata server."""
        host = self._store.host(name)
        host = msgspec.structs.replace(host, notice=notice, incarnation=host.incarnation + 1)
        self._store.change(self._store.record.with_host(host))
        if (board := self._boards.get(name)) is not None:
            board.post(notice)

    async def close(self) -> None:
        """Stop serving metadata; the hosts go on."""
        for name in list(self._servers):
            await self._close_server(name)

    async def _open(self, host: HostRecord) -> None:
        if self._store.record.hosts.get(host.name) != host:
            return  # destroyed, or under notice, before it was ready
        await asyncio.to_thread(ensure_host, self._layout, host.name, host.slot)
        config = await asyncio.to_thread(write_agent, self._folder, self._layout, self._store.record, host)
        namespace = namespace_path(self._layout.host_namespace(host.name))
        if host.name not in self._servers:
            board = self._board(host)
            application = metadata_application(host.provider, board, self._clock)
            self._servers[host.name] = await serve_metadata(application, namespace)
        marks = (host_mark(self._folder.fabric, host.name),)
        self._table.keep(Role(agent_name(host.name), self._commands.agent, config, namespace, marks))

    def _board(self, host: HostRecord) -> NoticeBoard:
        board = NoticeBoard(
            host.instance,
            host.region,
            notice=host.notice,
            incarnation=host.incarnation,
            acknowledged=lambda _: self._acknowledged(host.name),
        )
        self._boards[host.name] = board
        return board

    async def _close_server(self, name: str) -> None:
        self._boards.pop(name, None)
        server = self._servers.pop(name, None)
        if server is not None:
            await server.close()

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())


def _instance(provider: str) -> str:
    """An instance's id in the style of its cloud."""
    match provider:
        case "aws":
            return f"i-{secrets.token_hex(9)[:17]}"
        case "gcp":
            return f"spot-{secrets.token_hex(3)}"
        case _:
            return f"vmss_{secrets.token_hex(4)}"
