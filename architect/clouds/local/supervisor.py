"""The supervisor of a local fabric (`architect supervisor --state-dir FOLDER`, started by `architect up`).

It makes namespaces, links, certificates and configurations, keeps control plane, edge and one agent a host running, serves the
hosts' metadata, runs the spot market, and takes requests at STATE/local.sock::

    client ── local.sock ──> Supervisor ──> LocalHosts ──> namespaces, metadata servers
                                 │              └──> ProcessTable ──> control | edge | agent …
                                 └──> SpotMarket ──> LocalHosts.destroy

Killed, it takes nothing with it: a new one adopts what the record and the kernel show, and repairs the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any, assert_never

from architect.clouds.local import messages as say
from architect.clouds.local.configuration import write_control, write_edge
from architect.clouds.local.fabric import next_provider, open_fabric, sole_supervisor
from architect.clouds.local.hosts import LocalHosts
from architect.clouds.local.layout import FabricLayout, StateFolder, state_folder
from architect.clouds.local.market import SpotMarket
from architect.clouds.local.options import LocalOptions, read_options
from architect.clouds.local.process_table import ProcessTable, Role
from architect.clouds.local.readiness import Readiness
from architect.clouds.local.record import (
    HostRecord,
    RecordStore,
    agent_name,
)
from architect.errors import ArchitectError, UnavailableError, first_error
from architect.runtime.clock import Clock, SystemClock
from architect.runtime.logging import configure_logging, trim_log
from architect.runtime.namespaces import namespace_path
from architect.runtime.rpc import Call, Channel
from architect.runtime.socket_paths import short_socket_path
from architect.wire.framing import FrameError

LOG_CHECK_S = 30.0
FAREWELL_S = 0.2

_log = logging.getLogger(__name__)


class Supervisor:
    """One fabric, while this process runs. All of its tasks live in `group`."""

    def __init__(
        self,
        folder: StateFolder,
        layout: FabricLayout,
        store: RecordStore,
        options: LocalOptions,
        group: asyncio.TaskGroup,
        clock: Clock,
    ) -> None:
        self._folder = folder
        self._options = options
        self._group = group
        self._clock = clock
        self._layout = layout
        self._store = store
        self._table = ProcessTable(folder, store, group, clock)
        self._market = SpotMarket(store, group, clock)
        self._hosts = LocalHosts(folder, layout, store, self._table, options.commands, clock, self._market.acknowledged)
        self._readiness = Readiness(folder, layout, store, self._table, clock, says_hello=options.commands.says_hello)
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._adding = asyncio.Lock()
        self.stopped = asyncio.Event()

    async def start(self) -> None:
        """Adopt or make what belongs to the fabric; requests wait for it. If it fails they are told why, and we stop."""
        try:
            await self._open()
        except ArchitectError as error:
            _log.error("cannot bring up the fabric: %s", error)
            self._opened.set_exception(error)
            self._opened.exception()  # seen, also if nobody asks
            await self._clock.sleep(FAREWELL_S)
            self.stopped.set()
        else:
            self._opened.set_result(None)

    async def close(self) -> None:
        """Stop serving; what is supervised goes on."""
        await self._hosts.close()

    async def _open(self) -> None:
        control = await asyncio.to_thread(write_control, self._folder, self._layout)
        edge = await asyncio.to_thread(write_edge, self._folder, self._layout)
        self._table.keep(Role("control", self._options.commands.control, control))
        edge_namespace = namespace_path(self._layout.edge_namespace)
        self._table.keep(Role("edge", self._options.commands.edge, edge, edge_namespace))
        await self._hosts.adopt_all()
        self._group.create_task(self._market.run(self._hosts), name="spot market")
        self._group.create_task(self._trim_logs(), name="trim logs")

    async def serve(self, message: Any, body: bytes, call: Call | None) -> Any:
        """Serve one request of `messages`; the RPC channel's handler."""
        request: say.LocalMessage = message
        if not isinstance(request, say.StopSupervisor):
            await asyncio.shield(self._opened)
        match request:
            case say.BringUp(hosts):
                return await self._bring_up(hosts, call)
            case say.ReadStatus():
                return self._status()
            case say.PreemptHost(host, notice_s):
                return self._host_status(self._market.preempt(self._hosts, host, notice_s))
            case say.KillHost(host):
                return await self._destroy(host, gently=False)
            case say.RemoveHost(host):
                return await self._destroy(host, gently=True)
            case say.AddHost(provider, name):
                return await self._add(provider, name, call)
            case say.StopSupervisor():
                asyncio.get_running_loop().call_later(FAREWELL_S, self.stopped.set)
                return say.Done()
            case say.Progress() | say.HostStatus() | say.HostAdded() | say.FabricStatus() | say.Done():
                raise UnavailableError("local supervisor", "was sent an answer", "report this as a defect")
            case _:
                assert_never(request)

    async def _bring_up(self, hosts: int, call: Call | None) -> say.FabricStatus:
        async with self._adding:
            while (provider := next_provider(self._store.record, hosts)) is not None:
                host = await self._hosts.create(provider)
                await tell(call, f"host {host.name} made")
        await self._readiness.wait_ready(self._options.ready_timeout_s, partial(tell, call))
        return self._status()

    async def _add(self, provider: str, name: str, call: Call | None) -> say.HostAdded:
        async with self._adding:
            is_new = name not in self._store.record.hosts
            host = await self._hosts.create(provider, name)
        await tell(call, f"host {host.name} {'made' if is_new else 'is there already'}")
        await self._readiness.wait_ready(self._options.ready_timeout_s, partial(tell, call))
        return say.HostAdded(self._host_status(self._store.record.hosts.get(host.name, host)), is_new)

    async def _destroy(self, name: str, *, gently: bool) -> say.Done:
        self._store.host(name)
        # Shielded: a client that goes away must not leave a host half destroyed.
        await asyncio.shield(self._group.create_task(self._hosts.destroy(name, gently=gently), name=f"destroy {name}"))
        return say.Done()

    def _status(self) -> say.FabricStatus:
        return say.FabricStatus(
            fabric=self._layout.fabric,
            state_dir=str(self._folder.root),
            edge_addresses=self._layout.public_addresses,
            outside_address=str(self._layout.machine_link.inner_address),
            supervisor_pid=os.getpid(),
            control_pid=self._table.pid("control"),
            edge_pid=self._table.pid("edge"),
            edge_namespace=self._layout.edge_namespace,
            hosts=tuple(self._host_status(host) for host in self._store.record.hosts.values()),
        )

    def _host_status(self, host: HostRecord) -> say.HostStatus:
        notice = host.notice
        return say.HostStatus(
            name=host.name,
            provider=host.provider,
            region=host.region,
            instance=host.instance,
            address=str(self._layout.host_link(host.slot).inner_address),
            namespace=self._layout.host_namespace(host.name),
            state=host.state.value,
            agent_pid=self._table.pid(agent_name(host.name)),
            notice=None if notice is None else say.NoticeStatus(notice.id, notice.kind.value, notice.posted, notice.deadline),
        )

    async def _trim_logs(self) -> None:
        while True:
            for path in self._folder.logs.glob("*.log"):
                await asyncio.to_thread(trim_log, path)
            await self._clock.sleep(LOG_CHECK_S)


async def tell(call: Call | None, line: str) -> None:
    """A progress line to the asker."""
    if call is not None:
        await call.item(say.Progress(line))


async def run_supervisor(state_dir: Path) -> None:
    """Supervise the fabric of a state folder until told to stop (StopSupervisor, SIGTERM, SIGINT); what runs then goes on.

    Raises:
        ArchitectError: no options, another supervisor, or the fabric cannot be brought up.
    """
    folder = state_folder(state_dir)
    options = read_options(folder.options)
    with sole_supervisor(folder):
        try:
            async with asyncio.TaskGroup() as group:
                await _supervise(folder, options, group)
                raise _Stopped
        except* _Stopped:
            _log.info("supervisor stops; what it supervised goes on")
        except* ArchitectError as group_error:
            raise first_error(group_error) from group_error


class _Stopped(Exception):  # noqa: N818 - not an error: it ends the task group
    pass


async def _supervise(folder: StateFolder, options: LocalOptions, group: asyncio.TaskGroup) -> None:
    layout, store = await asyncio.to_thread(open_fabric, folder, options)
    supervisor = Supervisor(folder, layout, store, options, group, SystemClock())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, supervisor.stopped.set)

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(FrameError):
            await Channel(reader, writer, say.LocalMessage, supervisor.serve, "client").run()

    folder.local_socket.unlink(missing_ok=True)
    with short_socket_path(folder.local_socket) as path:  # until the server is closed: from Python 3.13 on that unlinks the path
        server = await asyncio.start_unix_server(lambda reader, writer: group.create_task(converse(reader, writer)) and None, path)
        folder.local_socket.chmod(0o600)
        async with server:
            group.create_task(supervisor.start(), name="open fabric")
            await supervisor.stopped.wait()
    await supervisor.close()


def main(arguments: list[str]) -> int:
    """`--state-dir FOLDER`; the exit status."""
    configure_logging()
    if len(arguments) != 2 or arguments[0] != "--state-dir":
        print("supervisor: needs --state-dir FOLDER; it is started by `architect up`", file=sys.stderr)
        return 2
    try:
        asyncio.run(run_supervisor(Path(arguments[1])))
    except ArchitectError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
