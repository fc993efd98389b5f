"""Target session: one move of memory, seen from the host that the VM comes to.

The source connects (see `data_listener`); each data connection is served by its own thread. `wait_cut` returns when the memory of
the cut is in place, `wait_present` when all pages have arrived after a post-copy cut and their root is the one that the source
promised. A broken protocol ends the session before the cut; after a post-copy cut lost connections may come back.
"""

from __future__ import annotations

import hmac
import threading
import time
from collections.abc import Callable
from pathlib import Path

from architect.errors import ArchitectError, PeerError
from architect.silo.fault_server import FaultServer
from architect.silo.memory_errors import CutError, MemoryLostError
from architect.silo.memory_state import IncomingMove
from architect.silo.page_receiver import PageReceiver
from architect.silo.page_runs import decode_runs, encode_parts
from architect.silo.page_unpacking import PageUnpacking
from architect.silo.ram_file import RamFile
from architect.silo.stream_connection import StreamConnection, StreamLostError
from architect.silo.stream_messages import Ack, Barrier, Hello, Hurry, Lacking, Missing, PackedPages, Promise, Proved, Zeros
from architect.silo.stream_messages import Pages as PagesMessage
from architect.silo.tracker import Tracker
from architect.silo.urgent_thread import make_normal, make_urgent
from architect.wire.framing import FrameError

LAST_PAGES_TIMEOUT_S = 10.0
_TICK_S = 0.1


class TargetSession:
    """One move, at its target.

    :param session: its secret.
    :param on_change: called when the cut is known, and when all is proved; before the source hears of it.
    :param kept: this process took over from one that died after the cut, and had kept this; what `folder` holds goes on.
    """

    def __init__(
        self, session: str, ram: RamFile, tracker: Tracker, faults: FaultServer, folder: Path, on_change: Callable[[], None],
        *, kept: IncomingMove | None = None,
    ) -> None:  # fmt: skip
        self.session = session
        self._on_change = on_change
        self._ram = ram
        self._folder = folder
        self._faults = faults
        self._changed = threading.Condition()
        self._data: dict[int, StreamConnection] = {}
        self._error: ArchitectError | None = None
        self._root = kept.root if kept is not None else ""
        self._ended = False
        if kept is None:
            PageReceiver.forget(folder)
            ram.punch_all()
        self.receiver = PageReceiver(ram, tracker, folder)
        self.receiver.is_cut = kept is not None
        faults.receive_from(self.receiver)

    def accepts(self, hello: Hello) -> str:
        """Why a connection that starts like this is not this session's; "" if it is."""
        if not hmac.compare_digest(hello.session.encode(), self.session.encode()):
            return "unknown session"
        if hello.purpose == "tunnel":
            return ""
        if hello.page_count != self._ram.page_count:
            return f"memory of {hello.page_count} pages for {self._ram.page_count}"
        is_cut = self.receiver.is_cut or self.is_received
        if (self._ended and not self.is_received) or hello.resume is not is_cut:
            return "the session is not where the connection thinks it is"
        return ""

    @property
    def is_running(self) -> bool:
        """Whether the guest may run on pages that are still to come."""
        return self.receiver.is_cut and not self._root

    @property
    def is_received(self) -> bool:
        """Whether all of the memory is here and verified."""
        return bool(self._root)

    @property
    def root(self) -> str:
        """Of all of the memory, once it is here; "" before."""
        return self._root

    def serve_demand(self, connection: StreamConnection) -> None:
        """Take a demand connection; it belongs to the fault server from now on."""
        self._faults.demand_from(connection)

    def serve_data(self, connection: StreamConnection, hello: Hello) -> None:
        """Serve a data connection until it ends."""
        with self._changed:
            if (old := self._data.get(hello.index)) is not None:
                old.interrupt()
            self._data[hello.index] = connection
        unpacking = PageUnpacking(self._ram.page_count, connection.peer) if connection.takes_packed else None
        try:
            if hello.resume and hello.index == 0:
                self._send_lacking(connection)
            while True:
                message, body = connection.receive(None)
                if unpacking is not None and isinstance(message, PackedPages):
                    message, body = unpacking.plain(message, body)
                self._handle(connection, message, body)
        except PeerError as error:
            self._fail(error)
            raise
        except StreamLostError as error:
            if not self.receiver.is_cut:
                self._fail(error)
        finally:
            with self._changed:
                if self._data.get(hello.index) is connection:
                    del self._data[hello.index]
                self._changed.notify_all()
            connection.close()

    def _handle(self, connection: StreamConnection, message: object, body: memoryview) -> None:
        match message:
            case PagesMessage() | Zeros() if not self.is_received:  # nothing may write to the memory of a guest that has all
                self.receiver.take(message, body, connection.peer)
            case Hurry():
                make_urgent()
            case Barrier():
                self.receiver.tree.root()  # outside the pause, if this is the end of a round
                connection.send(Ack(message.number))
            case Missing() if not self.receiver.is_cut:
                self.receiver.lose(decode_runs(message.runs, self._ram.page_count, connection.peer))
                if message.last:
                    make_normal()
                    with self._changed:
                        self.receiver.is_cut = True
                        self._on_change()
                        self._changed.notify_all()
            case Promise() if self.is_received:
                connection.send(Proved(self._root, self._root == message.root))
            case Promise() if self.receiver.is_cut:
                self._prove(connection, message.root)
            case _:
                raise FrameError(connection.peer, f"sent {type(message).__name__} out of turn", "check that it is an Architect")

    def _send_lacking(self, connection: StreamConnection) -> None:
        parts = encode_parts(self.receiver.missing.pages())
        for number, part in enumerate(parts, 1):
            connection.send(Lacking(part, number == len(parts)))

    def _prove(self, connection: StreamConnection, promised: str) -> None:
        deadline_s = time.monotonic() + LAST_PAGES_TIMEOUT_S
        while self.receiver.missing.count():  # the last demanded ones come on another connection
            if time.monotonic() > deadline_s:
                raise StreamLostError(connection.peer, "promised a root and left pages out", "it will be asked for them again")
            time.sleep(0.001)
        root = self.receiver.tree.root()
        with self._changed:
            self._root = root
            if root != promised:
                self._error = CutError("memory after post-copy", f"it is {root}, not {promised}", "report this as a defect")
            self._on_change()
            self._changed.notify_all()
        connection.send(Proved(root, root == promised))

    def _fail(self, error: ArchitectError) -> None:
        with self._changed:
            if self._error is None and not self._ended and not self._root:
                self._error = error
            for connection in self._data.values():
                connection.interrupt()
            self._changed.notify_all()

    def wait_cut(self, root: str, *, postcopy: bool, timeout_s: float) -> tuple[str, int]:
        """Return root and number of missing pages when the memory of the cut is in place.

        A connection that broke after its last page had come costs nothing: what is here is judged by its root.

        Raises:
            CutError: it is not that of `root`, or the list of missing pages did not come in time.
            ArchitectError: what ended the session before.
        """
        with self._changed:
            if postcopy:
                self._changed.wait_for(lambda: self._error is not None or self.receiver.is_cut, timeout_s)
            lost = self._error
            if lost is not None and (postcopy or not isinstance(lost, StreamLostError)):
                raise lost
        if self._root:
            return self._root, 0
        if postcopy is not self.receiver.is_cut:
            raise CutError("memory at the cut", "source and target disagree about post-copy", "try the move again")
        if postcopy:
            return "", self.receiver.missing.count()
        if (found := self.receiver.tree.root()) != root:
            raise lost or CutError("memory at the cut", f"it is {found}, not {root}", "try the move again")
        self._root, self._error = found, None
        self._on_change()
        self.end()  # nothing may write to the memory of a guest that runs
        return found, 0

    def wait_present(self, timeout_s: float) -> str:
        """Return the proved root when all pages have arrived. A source that cannot be reached is waited for: who asks knows more
        of it (`SourceContact`), and ends the wait, or the session.

        Raises:
            MemoryLostError: the time is over, or the session was ended.
            CutError: what arrived is not what was promised.
        """
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            while True:
                if self._error is not None:
                    raise self._error
                if self._root:
                    return self._root
                if self._ended:
                    raise self._lost("the move was ended")
                if time.monotonic() > deadline_s:
                    raise self._lost(f"not all has arrived in {timeout_s:.0f} s")
                self._changed.wait(_TICK_S)

    def _lost(self, cause: str) -> MemoryLostError:
        return MemoryLostError("memory", f"{self.receiver.missing.count()} pages are missing, {cause}", "see the source host")

    def end(self) -> None:
        """End all connections; if all is here, absent pages are zeros from now on. Idempotent."""
        if self._root:
            self._faults.receive_from(None)
            PageReceiver.forget(self._folder)
        with self._changed:
            self._ended = True
            for connection in self._data.values():
                connection.interrupt()
            self._changed.notify_all()
