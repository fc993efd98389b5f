"""Tunnels: the disk tunnels of one VM, by name, and how their connections are dialled and taken."""

from __future__ import annotations

import ssl
import threading
from typing import NamedTuple

from architect.model.compression import Compression
from architect.silo.disk_tunnel import Dial, DiskTunnel, TunnelEnd
from architect.silo.memory_errors import MemoryStateError
from architect.silo.memory_messages import SourceOptions, TunnelBytes
from architect.silo.rate_limit import RateLimit
from architect.silo.stream_connection import (
    HANDSHAKE_TIMEOUT_S,
    PACKED_PROTOCOL,
    StreamConnection,
    StreamRefusedError,
    dial,
    welcome,
)
from architect.silo.stream_messages import Hello, Refused, TunnelHello, Welcome
from architect.wire.framing import PROTOCOL_VERSION

TUNNELS_MAX = 16


class TunnelSource(NamedTuple):
    """What the source of a move dials with, and the limit that its tunnels share with its pages."""

    options: SourceOptions
    tls: ssl.SSLContext
    limit: RateLimit


class Tunnels:
    """The tunnels of one VM's memory process."""

    def __init__(self) -> None:
        self._tunnels: dict[str, DiskTunnel] = {}
        self._lock = threading.Lock()

    def open(self, name: str, path: str, end: TunnelEnd, source: TunnelSource | None) -> None:
        """Open one end. `source` is where to dial, at the source of a move. Idempotent for the same words.

        Raises:
            MemoryStateError: another tunnel has the name.
            TunnelError: the unix socket cannot be made.
            ServedFileError: the file cannot be read.
        """
        with self._lock:
            if (old := self._tunnels.get(name)) is not None and (old.path, old.end) == (path, end):
                return
            if old is not None or len(self._tunnels) >= TUNNELS_MAX:
                raise MemoryStateError(f"tunnel {name}", "there is one, or too many", "close it first")
            if source is None:
                self._tunnels[name] = DiskTunnel(name, path, end, None, RateLimit(0))
                return
            # Who reads a served file is a guest that waits, or copies behind one.
            wish = Compression.OFF if end is TunnelEnd.SERVES else source.options.compression
            if wish is not Compression.OFF:
                source.tls.set_alpn_protocols([PACKED_PROTOCOL])
            self._tunnels[name] = DiskTunnel(name, path, end, _dialler(source), source.limit, wish)

    def take(self, connection: StreamConnection) -> None:
        """At the target: a connection for a tunnel has come.

        Raises:
            StreamLostError, StreamRefusedError, FrameError: it is for none.
        """
        try:
            hello = connection.receive_as(TunnelHello, HANDSHAKE_TIMEOUT_S)
            tunnel = self._tunnels.get(hello.name)
            if cause := f"no tunnel {hello.name}" if tunnel is None else tunnel.refusal(hello):
                connection.send(Refused(cause))
                raise StreamRefusedError(connection.peer, cause, "see both ends of the tunnel")
            assert tunnel is not None
            connection.send(Welcome())
            tunnel.take(connection, hello)
        except BaseException:
            connection.close()
            raise

    def close(self, name: str) -> TunnelBytes:
        """Close one; returns what it carried. Idempotent."""
        with self._lock:
            tunnel = self._tunnels.pop(name, None)
        if tunnel is None:
            return TunnelBytes(0, 0)
        tunnel.close()
        return tunnel.bytes

    @property
    def bytes(self) -> TunnelBytes:
        """What the open tunnels have carried."""
        with self._lock:
            each = [tunnel.bytes for tunnel in self._tunnels.values()]
        return TunnelBytes(sum(one.sent for one in each), sum(one.received for one in each), sum(one.saved for one in each))

    def close_all(self) -> None:
        """Close all."""
        for name in list(self._tunnels):
            self.close(name)


def _dialler(source: TunnelSource) -> Dial:
    options = source.options

    def dial_half(hello: TunnelHello) -> StreamConnection:
        first = Hello(PROTOCOL_VERSION, options.session, "tunnel")
        connection = dial((options.address, options.port), source.tls, options.server_name, first)
        try:
            connection.send(hello)
            welcome(connection, HANDSHAKE_TIMEOUT_S)
        except BaseException:
            connection.close()
            raise
        return connection

    return dial_half
