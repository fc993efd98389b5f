"""Tunnel link: one connection of a unix socket, carried to the peer by two TLS connections, one for each direction.

Two, because OpenSSL allows no read beside a write on one connection; so each direction is a thread that moves bytes, its end
(TLS close_notify) is the end of that direction only, and a direction that breaks ends both. Towards the target, where the disk
goes, bytes are compressed where that pays, if both ends have agreed to it (`tunnel_chunks`).
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable
from typing import Protocol

from architect.errors import PeerError
from architect.model.compression import Compression
from architect.silo.stream_connection import StreamConnection
from architect.silo.tunnel_chunks import ChunkReader, ChunkSender

BUFFER_BYTES = 256 << 10
CLOSE_TIMEOUT_S = 5.0
_log = logging.getLogger("architect.memory")


class Count(Protocol):
    """Told of bytes as they pass."""

    def __call__(self, *, sent: int = 0, received: int = 0, saved: int = 0) -> None:
        """So many more have passed; `saved` of those sent were kept off the wire."""


class TunnelLink:
    """Moves bytes until both directions have ended.

    :param local: the connection to the local program.
    :param outward, inward: the connections that carry its output to the peer, and the peer's to it.
    :param pace: called with a number of bytes before they are sent; returns when they may be.
    :param wish: at the source, what is wished of its output; None at the target.
    """

    def __init__(
        self, local: socket.socket, outward: StreamConnection, inward: StreamConnection, pace: Callable[[int], None],
        count: Count, wish: Compression | None = None,
    ) -> None:  # fmt: skip
        self._local = local
        self._outward = outward
        self._inward = inward
        self._pace = pace
        self._count = count
        self._wish = wish

    def run(self) -> None:
        """Move bytes; returns when it is over. All is closed then."""
        reverse = threading.Thread(target=self._guarded, args=(self._pump_in,), name="memory-tunnel", daemon=True)
        reverse.start()
        self._guarded(self._pump_out)
        reverse.join()
        self._outward.close()
        self._inward.close()
        self._local.close()

    def interrupt(self) -> None:
        """End it from another thread. Idempotent."""
        self._outward.interrupt()
        self._inward.interrupt()
        with contextlib.suppress(OSError):
            self._local.shutdown(socket.SHUT_RDWR)

    def _guarded(self, pump: Callable[[], None]) -> None:
        try:
            pump()
        except (OSError, ValueError) as error:
            _log.info("%s: a tunnel's link broke, or was ended (%s)", self._outward.peer, error)
            self.interrupt()
        except PeerError as error:
            _log.warning("%s", error)
            self.interrupt()

    def _pump_out(self) -> None:
        tls = self._outward.take_socket()
        tls.settimeout(None)
        if self._wish is not None and self._outward.takes_packed:
            chunks = ChunkSender(self._wish, self._outward, self._pace)
            while length := self._local.recv_into(chunks.buffer):
                self._count(sent=length, saved=chunks.send(length))
        else:
            buffer = memoryview(bytearray(BUFFER_BYTES))
            while length := self._local.recv_into(buffer):
                self._pace(length)
                tls.sendall(buffer[:length])
                self._count(sent=length)
        tls.settimeout(CLOSE_TIMEOUT_S)
        tls.unwrap()

    def _pump_in(self) -> None:
        tls = self._inward.take_socket()
        tls.settimeout(None)
        if self._wish is None and self._inward.takes_packed:
            chunks = ChunkReader(tls, self._inward.peer)
            while data := chunks.read():
                self._local.sendall(data)
                self._count(received=len(data))
        else:
            buffer = memoryview(bytearray(BUFFER_BYTES))
            while length := tls.recv_into(buffer):
                self._local.sendall(buffer[:length])
                self._count(received=length)
        self._local.shutdown(socket.SHUT_WR)
        tls.settimeout(CLOSE_TIMEOUT_S)
        tls.unwrap()
