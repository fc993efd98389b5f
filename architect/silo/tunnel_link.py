"""Tunnel link: one connection of a unix socket, carried to the peer by two TLS connections, one for each direction.

Two, because OpenSSL allows no read beside a write on one connection; so each direction is a thread that moves bytes, its end
(TLS close_notify) is the end of that direction only, and a direction that breaks ends both.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

from architect.silo.stream_connection import StreamConnection

BUFFER_BYTES = 256 << 10
CLOSE_TIMEOUT_S = 5.0


class TunnelLink:
    """Moves bytes until both directions have ended.

    :param local: the connection to the local program.
    :param outward, inward: the connections that carry its output to the peer, and the peer's to it.
    :param pace: called with a number of bytes before they are sent; returns when they may be.
    :param count: called with (sent, received) bytes as they pass.
    """

    def __init__(
        self, local: socket.socket, outward: StreamConnection, inward: StreamConnection, pace: Callable[[int], None],
        count: Callable[[int, int], None],
    ) -> None:  # fmt: skip
        self._local = local
        self._outward = outward
        self._inward = inward
        self._pace = pace
        self._count = count

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
        except (OSError, ValueError):
            self.interrupt()

    def _pump_out(self) -> None:
        tls, buffer = self._outward.take_socket(), memoryview(bytearray(BUFFER_BYTES))
        tls.settimeout(None)
        while length := self._local.recv_into(buffer):
            self._pace(length)
            tls.sendall(buffer[:length])
            self._count(length, 0)
        tls.settimeout(CLOSE_TIMEOUT_S)
        tls.unwrap()

    def _pump_in(self) -> None:
        tls, buffer = self._inward.take_socket(), memoryview(bytearray(BUFFER_BYTES))
        tls.settimeout(None)
        while length := tls.recv_into(buffer):
            self._local.sendall(buffer[:length])
            self._count(0, length)
        self._local.shutdown(socket.SHUT_WR)
        tls.settimeout(CLOSE_TIMEOUT_S)
        tls.unwrap()
