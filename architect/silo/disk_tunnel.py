"""Disk tunnel: a unix socket here that ends at a unix socket of the peer host, or in a file there, for the NBD traffic of a move.

Either end may be the one that listens. The source of the move always dials: for a listener at the source when a client comes; for
one at the target ahead of time (`PARKED_LINKS` links are held ready; another is dialled for each that is taken or breaks, since a
client whose link has broken comes again).
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import socket
import threading
from collections.abc import Callable
from enum import StrEnum

import msgspec

from architect.errors import ArchitectError, HostError
from architect.model.compression import Compression
from architect.silo.memory_messages import TunnelBytes
from architect.silo.nbd_server import ServedFile
from architect.silo.rate_limit import RateLimit
from architect.silo.served_link import ServedLink
from architect.silo.stream_connection import StreamConnection, StreamLostError, StreamRefusedError
from architect.silo.stream_messages import TunnelHello, TunnelTaken
from architect.silo.tunnel_link import TunnelLink

PARKED_LINKS = 2
LINKS_MAX = 64
CONNECT_TIMEOUT_S = 5.0
PARKED_TIMEOUT_S = 10.0
REDIAL_S = 0.5
_log = logging.getLogger("architect.memory")

Dial = Callable[[TunnelHello], StreamConnection]


class TunnelError(HostError):
    """A local end of a tunnel cannot be had."""


class TunnelEnd(StrEnum):
    """What an end does with its path: listens at that unix socket, connects to it, or answers from that file."""

    LISTENS = "listens"
    CONNECTS = "connects"
    SERVES = "serves"


class Halves(msgspec.Struct):
    """The two connections of a link, as far as they have come. `up` leads from source to target."""

    up: StreamConnection | None = None
    down: StreamConnection | None = None


class DiskTunnel:
    """One end of one tunnel.

    :param dial: opens one half of a link; None at the target, which takes what comes (`take`).
    :param limit: what goes to the peer waits for it.
    :param wish: at the source: whether to compress what goes to the peer.
    """

    def __init__(
        self, name: str, path: str, end: TunnelEnd, dial: Dial | None, limit: RateLimit, wish: Compression = Compression.OFF
    ) -> None:
        self.name = name
        self.path = path
        self.end = end
        self._dial = dial
        self._limit = limit
        self._wish = wish
        self._lock = threading.Lock()
        self._links: set[TunnelLink | ServedLink] = set()
        self._parked: queue.Queue[Halves] = queue.Queue(LINKS_MAX)
        self._halves: dict[int, Halves] = {}
        self._waiting: set[StreamConnection] = set()
        self._next_number = 0
        self._closed = threading.Event()
        self._sent = self._received = self._saved = 0
        self._file = ServedFile(path) if end is TunnelEnd.SERVES else None
        self._server = self._listen() if end is TunnelEnd.LISTENS else None
        if self._server is not None:
            self._thread(self._accept, self._server)
        elif dial is not None:
            for _ in range(PARKED_LINKS):
                self._thread(self._park)

    def _listen(self) -> socket.socket:
        server = socket.socket(socket.AF_UNIX)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
            server.bind(self.path)
            server.listen()
        except OSError as error:
            server.close()
            raise TunnelError(f"tunnel {self.name}", f"cannot listen at {self.path} ({error.strerror})", "see the path") from error
        return server

    def _thread(self, work: Callable[..., None], *arguments: object) -> None:
        threading.Thread(target=self._guarded, args=(work, *arguments), name=f"memory-{self.name}", daemon=True).start()

    def _guarded(self, work: Callable[..., None], *arguments: object) -> None:
        try:
            work(*arguments)
        except (ArchitectError, OSError) as error:
            if not self._closed.is_set():
                _log.warning("tunnel %s: %s", self.name, error)

    def _accept(self, server: socket.socket) -> None:
        while not self._closed.is_set():
            local, _ = server.accept()
            self._thread(self._carry, local)

    def _carry(self, local: socket.socket) -> None:
        """A local client has come: find it a link."""
        try:
            halves = self._dialled(parked=False) if self._dial is not None else self._parked_link()
        except BaseException:
            local.close()
            raise
        self._run(self._link(local, halves))

    def _parked_link(self) -> Halves:
        while True:
            try:
                halves = self._parked.get(timeout=PARKED_TIMEOUT_S)
            except queue.Empty as error:
                raise TunnelError(
                    f"tunnel {self.name}", "the source holds no link ready", "open the tunnel at the source"
                ) from error
            assert halves.up is not None and halves.down is not None
            try:
                halves.down.send(TunnelTaken())
            except StreamLostError:  # it broke while it was parked; the source holds another one ready, or will
                halves.up.close()
                halves.down.close()
                continue
            for half in (halves.up, halves.down):
                half.endure()  # it carries the disk of a guest that runs already
            return halves

    def _dialled(self, *, parked: bool) -> Halves:
        assert self._dial is not None
        with self._lock:
            number, self._next_number = self._next_number, self._next_number + 1
        up = self._dial(TunnelHello(self.name, number, True, parked))
        try:
            return Halves(up, self._dial(TunnelHello(self.name, number, False, parked)))
        except BaseException:
            up.close()
            raise

    def _park(self) -> None:
        """Hold a link ready at the target until a client there takes it; then carry that to the local server."""
        while not self._closed.is_set():
            try:
                halves = self._taken()
            except (StreamLostError, StreamRefusedError) as error:
                if not self._closed.wait(REDIAL_S):
                    _log.info("tunnel %s: %s; dialled again", self.name, error)
                continue
            self._thread(self._park)
            self._end_here(halves)
            return

    def _taken(self) -> Halves:
        """A link that a client at the target has taken."""
        halves = self._dialled(parked=True)
        assert halves.up is not None and halves.down is not None
        with self._lock:
            self._waiting.add(halves.down)
        if self._closed.is_set():
            halves.down.interrupt()
        try:
            halves.down.receive_as(TunnelTaken, None)
        except BaseException:
            halves.up.close()
            halves.down.close()
            raise
        finally:
            with self._lock:
                self._waiting.discard(halves.down)
        for half in (halves.up, halves.down):
            half.endure()
        return halves

    def refusal(self, hello: TunnelHello) -> str:
        """Why this end does not take such a link; "" if it does."""
        if self._dial is not None or hello.parked is not (self.end is TunnelEnd.LISTENS):
            return f"tunnel {self.name} is not of that direction"
        if self._closed.is_set() or max(len(self._halves), self._parked.qsize(), len(self._links)) >= LINKS_MAX:
            return f"tunnel {self.name} is closed or has over {LINKS_MAX} links"
        return ""

    def take(self, connection: StreamConnection, hello: TunnelHello) -> None:
        """At the target: a half of a link has come, and was welcomed; it is this tunnel's from now on."""
        with self._lock:
            halves = self._halves.setdefault(hello.number, Halves())
            if hello.upward:
                halves.up = connection
            else:
                halves.down = connection
            if halves.up is None or halves.down is None:
                return
            del self._halves[hello.number]
        if hello.parked:
            self._parked.put_nowait(halves)
        else:
            self._thread(self._end_here, halves)

    def _end_here(self, halves: Halves) -> None:
        """A client of the peer's has come: carry it to our server, or answer it."""
        if self._file is not None:
            self._run(ServedLink(self._file, *self._directions(halves), self._limit.wait, self._count))
        else:
            self._run(self._link(self._connect(halves), halves))

    def _link(self, local: socket.socket, halves: Halves) -> TunnelLink:
        wish = self._wish if self._dial is not None else None
        return TunnelLink(local, *self._directions(halves), self._limit.wait, self._count, wish)

    def _directions(self, halves: Halves) -> tuple[StreamConnection, StreamConnection]:
        """The connections to the peer, and from it."""
        assert halves.up is not None and halves.down is not None
        return (halves.up, halves.down) if self._dial is not None else (halves.down, halves.up)

    def _connect(self, halves: Halves) -> socket.socket:
        local = socket.socket(socket.AF_UNIX)
        try:
            local.settimeout(CONNECT_TIMEOUT_S)
            local.connect(self.path)
            local.settimeout(None)
        except OSError as error:
            local.close()
            for half in (halves.up, halves.down):
                if half is not None:
                    half.close()
            raise TunnelError(
                f"tunnel {self.name}", f"cannot connect to {self.path} ({error})", "see who should listen there"
            ) from error
        return local

    def _run(self, link: TunnelLink | ServedLink) -> None:
        with self._lock:
            self._links.add(link)
        if self._closed.is_set():
            link.interrupt()
        link.run()
        with self._lock:
            self._links.discard(link)

    def _count(self, *, sent: int = 0, received: int = 0, saved: int = 0) -> None:
        with self._lock:
            self._sent += sent
            self._received += received
            self._saved += saved

    @property
    def bytes(self) -> TunnelBytes:
        """What it has carried."""
        return TunnelBytes(self._sent, self._received, self._saved)

    def close(self) -> None:
        """End it with all its connections. Idempotent."""
        if self._file is not None and not self._closed.is_set():
            self._file.close()
        self._closed.set()
        if self._server is not None:
            with contextlib.suppress(OSError):
                self._server.shutdown(socket.SHUT_RDWR)
            self._server.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
        with self._lock:
            links, waiting, halves = list(self._links), list(self._waiting), list(self._halves.values())
        while not self._parked.empty():
            halves.append(self._parked.get_nowait())
        for link in links:
            link.interrupt()
        for connection in waiting:
            connection.interrupt()
        for pair in halves:
            for half in (pair.up, pair.down):
                if half is not None:
                    half.close()
