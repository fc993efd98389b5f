"""Memory process: what serves the agent's requests about one VM's memory. The work itself is in the sessions, in threads.

What the agent's connection asks for ends with it where that is safe (a round), and goes on where it is not (serving a guest that
runs elsewhere): the agent may be killed and come back at any time.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from architect.errors import ArchitectError
from architect.model.handover_span import Side, Span
from architect.model.sizes import PAGE_BYTES
from architect.runtime.rpc import Call
from architect.runtime.tls import client_context, server_context
from architect.silo import memory_messages as m
from architect.silo.data_listener import DataListener, ListenError
from architect.silo.dirty_log import DirtyLog
from architect.silo.disk_tunnel import TunnelEnd
from architect.silo.fault_server import FaultServer
from architect.silo.memory_errors import MemoryLostError, MemoryStateError
from architect.silo.memory_hash import hash_memory
from architect.silo.memory_role import MemoryRole
from architect.silo.memory_state import IncomingMove, KeptState, keep_state, kept_state, start_time
from architect.silo.ram_file import RamFile
from architect.silo.source_contact import SourceContact
from architect.silo.source_session import SourceSession
from architect.silo.stream_connection import StreamConnection
from architect.silo.stream_messages import Hello
from architect.silo.target_session import TargetSession
from architect.silo.tracker import Tracker
from architect.silo.tunnels import Tunnels, TunnelSource
from architect.wire.framing import PROTOCOL_VERSION

STOP_TIMEOUT_S = 20.0
THREADS_MAX = 32
_ENDS = {m.TunnelListen: TunnelEnd.LISTENS, m.TunnelConnect: TunnelEnd.CONNECTS, m.TunnelServe: TunnelEnd.SERVES}
ResultT = TypeVar("ResultT")


class MemoryService:
    """One VM's memory.

    :param folder: the run directory; on a tmpfs.
    :param tls_folder: this host's certificate.
    """

    def __init__(self, ram: RamFile, folder: Path, tls_folder: Path) -> None:
        self._ram = ram
        self._folder = folder
        self._tls_folder = tls_folder
        self._pool = ThreadPoolExecutor(THREADS_MAX, "memory-request")
        self._tracker: Tracker | None = None
        self._log: DirtyLog | None = None
        self._faults: FaultServer | None = None
        self._source: SourceSession | None = None
        self._serving: asyncio.Future[m.Served] | None = None
        self._target: TargetSession | None = None
        self._listener: DataListener | None = None
        self._contact = SourceContact()
        self._tunnels = Tunnels()
        self._error = ""
        self.ended = asyncio.Event()

    async def handle(self, message: Any, body: bytes, call: Call | None) -> Any:
        """Serve one request of the agent."""
        match message:
            case m.Attach():
                self._attach(message.pid, message.role)
                return m.Done()
            case m.GetStatus():
                if message.scan and self._log is not None:
                    await self._in_thread(self._log.scan)
                return self._status()
            case m.OpenSource():
                return await self._open_source(message)
            case m.Bulk():
                source = self._sending()
                return await self._in_thread(lambda: source.bulk(message.deadline_s), source.stop)
            case m.Round():
                source = self._sending()
                return await self._in_thread(lambda: source.round(message.deadline_s), source.stop)
            case m.StopRound():
                self._sending().stop()
                return m.Done()
            case m.SetBandwidth():
                self._sending().limit.change(message.bytes_per_s)
                return m.Done()
            case m.Announce():
                await self._in_thread(self._sending().announce)
                return m.Done()
            case m.MakeCut():
                source = self._sending()
                return await self._in_thread(lambda: source.cut(postcopy=message.postcopy))
            case m.StartServing():
                self._start_serving()
                return m.Done()
            case m.Serve():
                return await asyncio.shield(self._start_serving())
            case m.EndSource():
                return await self._end_source()
            case _:
                return await self._handle_target(message)

    async def _handle_target(self, message: Any) -> Any:
        match message:
            case m.OpenTarget():
                return await self._in_thread(lambda: self._open_target(message))
            case m.ApplyCut():
                target = self._receiving()
                begin_s = time.monotonic()
                root, missing = await self._in_thread(
                    lambda: target.wait_cut(message.root, postcopy=message.postcopy, timeout_s=message.timeout_s)
                )
                return m.Applied(root, missing, (Span("memory-compare", Side.TARGET, begin_s, time.monotonic(), "apply"),))
            case m.WaitPresent():
                target = self._receiving()
                return m.Applied(await self._in_thread(lambda: target.wait_present(message.timeout_s)), 0)
            case m.AbortTarget():
                await self._in_thread(self._abort_target)
                return m.Done()
            case m.TunnelListen() | m.TunnelConnect() | m.TunnelServe():
                await self._in_thread(lambda: self._open_tunnel(message))
                return m.Done()
            case m.TunnelClose():
                return await self._in_thread(lambda: self._tunnels.close(message.name))
            case m.FullHash():
                if self._target is not None and self._target.is_running:
                    raise MemoryStateError("memory", "pages are still to come", "wait until all are present")
                return m.Hashed(await self._in_thread(lambda: hash_memory(self._ram)))
            case m.Shutdown():
                self.ended.set()
                return m.Done()
            case _:
                raise MemoryStateError("memory process", f"serves no {type(message).__name__}", "report this as a defect")

    async def _in_thread(self, work: Callable[[], ResultT], stop: Callable[[], None] | None = None) -> ResultT:
        """Run blocking work; cancelled, ask it to stop and wait (bounded) until it has."""
        future = asyncio.get_running_loop().run_in_executor(self._pool, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if stop is not None:
                stop()
                await asyncio.wait([future], timeout=STOP_TIMEOUT_S)
            future.add_done_callback(lambda done: done.exception())  # seen: nobody waits for it any more
            raise

    def _attach(self, pid: int, role: MemoryRole) -> None:
        if self._tracker is not None:
            if (self._tracker.pid, self._tracker.role) == (pid, role):
                return
            raise MemoryStateError("memory process", f"it watches process {self._tracker.pid}", "start another one")
        self._watch(pid, role, armed=False)
        self._keep()
        if self._faults is not None:
            self._faults.start()

    def _watch(self, pid: int, role: MemoryRole, *, armed: bool) -> Tracker:
        tracker = self._tracker = Tracker(pid, self._ram, role, armed=armed)
        self._log = DirtyLog(self._ram.page_count, self._folder, tracker.written)
        if role is MemoryRole.INCOMING:
            self._faults = FaultServer(tracker, self._ram.page_count)
        return tracker

    def take_over(self) -> None:
        """Go on where a process before this one was killed, if its QEMU still runs."""
        if (kept := kept_state(self._folder)) is None:
            return
        tracker = self._watch(kept.qemu_pid, kept.role, armed=True)
        if self._faults is None:
            return
        if kept.incoming is not None:
            self._contact = SourceContact()
            self._target = TargetSession(
                kept.incoming.session, self._ram, tracker, self._faults, self._folder, self._keep,
                kept=kept.incoming,
            )  # fmt: skip
            self._listen_again(kept.incoming)
        self._faults.start()  # not before it knows what is missing: it would answer with zeros
        tracker.wake_all()

    def _keep(self) -> None:
        assert self._tracker is not None
        incoming = None
        target = self._target
        if target is not None and self._listener is not None and (target.is_running or target.is_received):
            incoming = IncomingMove(target.session, self._listener.address, self._listener.port, target.root)
        keep_state(self._folder, KeptState(self._tracker.pid, start_time(self._tracker.pid), self._tracker.role, incoming))

    def _sending(self) -> SourceSession:
        if self._source is None:
            raise MemoryStateError("memory process", "no move leaves from here", "open one")
        return self._source

    def _receiving(self) -> TargetSession:
        if self._target is None:
            raise MemoryStateError("memory process", "no move comes here", "open one")
        return self._target

    async def _open_source(self, message: m.OpenSource) -> m.Done:
        if self._log is None or self._source is not None or (self._target is not None and not self._target.is_received):
            raise MemoryStateError("memory process", f"it is {self._state()}", "end what goes on first")
        await self._in_thread(self._abort_target)  # of the move that brought the VM here
        source = self._source = SourceSession(message.options, self._ram, self._log, client_context(self._tls_folder))
        try:
            await self._in_thread(lambda: source.open(resume=message.resume), source.end)
        except BaseException:
            await self._end_source()
            raise
        return m.Done()

    def _start_serving(self) -> asyncio.Future[m.Served]:
        """Serving, which goes on; begun anew if the target had not been reached for too long: it may be there again."""
        if self._serving is None or (self._serving.done() and isinstance(self._serving.exception(), MemoryLostError)):
            self._serving = asyncio.get_running_loop().run_in_executor(self._pool, self._sending().serve)
            self._serving.add_done_callback(self._note_failure)
        return self._serving

    def _note_failure(self, done: asyncio.Future[m.Served]) -> None:
        if not done.cancelled() and (error := done.exception()) is not None:
            self._error = str(error)

    async def _end_source(self) -> m.Done:
        if (source := self._source) is not None:
            self._source = None
            self._serving = None
            await self._in_thread(source.end)
        return m.Done()

    def _open_target(self, message: m.OpenTarget) -> m.TargetEndpoint:
        if self._tracker is None or self._faults is None or self._source is not None or self._target is not None:
            raise MemoryStateError("memory process", f"it is {self._state()}", "attach an incoming QEMU, end what goes on")
        self._contact = SourceContact()
        self._target = TargetSession(message.session, self._ram, self._tracker, self._faults, self._folder, self._keep)
        return m.TargetEndpoint(self._listen(message.address, 0))

    def _listen(self, address: str, port: int) -> int:
        self._listener = DataListener(address, port, server_context(self._tls_folder), self._accept, self._serve_peer)
        return self._listener.port

    def _listen_again(self, incoming: IncomingMove) -> None:
        """A guest that lacks pages needs its source to find us; one that has all may lack only blocks of its disk."""
        try:
            self._listen(incoming.address, incoming.port)
        except ListenError as error:
            if not incoming.root:
                raise
            self._error = str(error)

    def _accept(self, hello: Hello) -> str:
        return "unknown session" if self._target is None else self._target.accepts(hello)

    def _serve_peer(self, connection: StreamConnection, hello: Hello) -> None:
        target = self._receiving()
        self._contact.add(connection)
        if hello.purpose == "demand":
            target.serve_demand(connection)
        elif hello.purpose == "tunnel":
            self._tunnels.take(connection)
        else:
            target.serve_data(connection, hello)

    def _open_tunnel(self, message: m.TunnelListen | m.TunnelConnect | m.TunnelServe) -> None:
        source = None
        if self._source is not None:
            source = TunnelSource(self._source.options, client_context(self._tls_folder), self._source.limit)
        elif self._target is None:
            raise MemoryStateError(f"tunnel {message.name}", "no move goes on", "open the move's source or target first")
        self._tunnels.open(message.name, message.path, _ENDS[type(message)], source)

    def _abort_target(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._target is not None:
            self._target.end()
            self._target = None
            self._keep()

    def _state(self) -> str:
        if self._tracker is None:
            return "idle"
        if self._source is not None:
            return "sending" if self._serving is None else "serving"
        if self._target is not None:
            return "received" if self._target.is_received else "postcopy" if self._target.is_running else "receiving"
        return "tracking"

    def _status(self) -> m.MemoryStatus:
        left = self._source.pages_left if self._source else 0
        received = 0
        if self._target is not None:
            left, received = self._target.receiver.missing.count(), self._target.receiver.bytes_received
        faults, tunnels = self._faults, self._tunnels.bytes
        return m.MemoryStatus(
            version=PROTOCOL_VERSION,
            state=self._state(),
            pid=os.getpid(),
            memory_fd=self._ram.descriptor,
            memory_bytes=self._ram.page_count * PAGE_BYTES,
            qemu_pid=self._tracker.pid if self._tracker else 0,
            role=self._tracker.role.value if self._tracker else "",
            dirty_pages=self._log.last_count if self._log else 0,
            pages_left=left,
            bytes_sent=self._source.bytes_sent if self._source else 0,
            bytes_acked=self._source.bytes_acked if self._source else 0,
            bytes_saved=self._source.bytes_saved if self._source else 0,
            bytes_received=received,
            tunnel_bytes_sent=tunnels.sent,
            tunnel_bytes_saved=tunnels.saved,
            silent_s=self._contact.silent_s() if self._target is not None else 0.0,
            zero_faults=faults.zero_latency.report() if faults else m.FaultReport(),
            remote_faults=faults.remote_latency.report() if faults else m.FaultReport(),
            error=self._error,
        )

    async def track(self, interval_s: float) -> None:
        """Learn how often extents are written: scan now and then while no move does. Never returns."""
        while True:
            await asyncio.sleep(interval_s)
            if self._log is not None and self._source is None and (self._target is None or not self._target.is_running):
                try:
                    await self._in_thread(self._log.scan)
                except ArchitectError as error:
                    self._error = str(error)
                    return

    async def close(self) -> None:
        """End everything; what QEMU has registered stays."""
        self._tunnels.close_all()
        await self._end_source()
        await self._in_thread(self._abort_target)
        if self._faults is not None:
            await self._in_thread(self._faults.stop)
        self._pool.shutdown(wait=False)
