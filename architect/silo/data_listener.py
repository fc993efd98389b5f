"""Data listener: takes peers' connections at the target, and refuses what is none of ours with one line in the log.

TLS with a certificate of the fabric's CA first, then a Hello within `HANDSHAKE_TIMEOUT_S`, without a body. Nothing of the VM is
touched, and no buffer for bodies made, before the session's secret was right.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import threading
from collections.abc import Callable

from architect.errors import ArchitectError, HostError, PeerError
from architect.model.sizes import PAGE_BYTES
from architect.silo.stream_connection import HANDSHAKE_TIMEOUT_S, PACKED_PROTOCOL, StreamConnection, StreamRefusedError, tune
from architect.silo.stream_messages import FRAME_PAGES_MAX, Hello, Refused, Welcome
from architect.wire.framing import PROTOCOL_VERSION

CONNECTIONS_MAX = 256
BACKLOG = 64
_log = logging.getLogger("architect.memory")

Accept = Callable[[Hello], str]
Serve = Callable[[StreamConnection, Hello], None]


class ListenError(HostError):
    """The data port cannot be opened."""


class DataListener:
    """Listens until `close`.

    :param accept: why a Hello is refused, "" if it is not.
    :param serve: serves an accepted connection, in its thread, and closes it (or hands it on).
    """

    def __init__(self, address: str, port: int, tls: ssl.SSLContext, accept: Accept, serve: Serve) -> None:
        self._tls = tls
        tls.num_tickets = 0  # never read by a side that only sends; unread bytes would make its close a reset
        tls.set_alpn_protocols([PACKED_PROTOCOL])
        self._accept = accept
        self._serve = serve
        self._slots = threading.Semaphore(CONNECTIONS_MAX)
        try:
            self._socket = socket.create_server((address, port), backlog=BACKLOG)
        except OSError as error:
            raise ListenError(f"address {address}", f"cannot listen ({error.strerror})", "see the host's addresses") from error
        self.address = address
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._run, name="memory-listen", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            self._slots.acquire()
            try:
                plain, address = self._socket.accept()
            except OSError:
                return
            name = f"memory process at {address[0]}:{address[1]}"
            threading.Thread(target=self._take, args=(plain, name), name="memory-peer", daemon=True).start()

    def _take(self, plain: socket.socket, peer: str) -> None:
        try:
            connection, hello = self._greet(plain, peer)
        except (ArchitectError, OSError, ValueError) as error:
            _log.warning("refused %s: %s", peer, " ".join(str(error).split()))
            plain.close()
            self._slots.release()
            return
        try:
            self._serve(connection, hello)
        except PeerError as error:
            _log.warning("%s", error)
        except ArchitectError as error:
            _log.info("%s", error)
        finally:
            self._slots.release()

    def _greet(self, plain: socket.socket, peer: str) -> tuple[StreamConnection, Hello]:
        tune(plain)
        plain.settimeout(HANDSHAKE_TIMEOUT_S)
        connection = StreamConnection(self._tls.wrap_socket(plain, server_side=True, suppress_ragged_eofs=False), peer)
        try:
            hello = connection.receive_as(Hello, HANDSHAKE_TIMEOUT_S)
            cause = self._accept(hello)
            if hello.version != PROTOCOL_VERSION:
                cause = f"version {hello.version} of the protocol for {PROTOCOL_VERSION}"
            if cause:
                connection.send(Refused(cause))
                raise StreamRefusedError(peer, cause, "see who connects here")
            connection.allow_bodies(FRAME_PAGES_MAX * PAGE_BYTES)
            connection.send(Welcome())
        except BaseException:
            connection.close()
            raise
        return connection, hello

    def close(self) -> None:
        """Take no more connections; those that were taken go on. Idempotent."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        if threading.current_thread() is not self._thread:
            self._thread.join()
