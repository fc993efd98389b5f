"""A tunnel's links: one that carries the disk of a guest that runs endures a silent peer for long, others end soon."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any, cast

from architect.silo.disk_tunnel import DiskTunnel, TunnelEnd
from architect.silo.rate_limit import RateLimit
from architect.silo.stream_connection import DEAD_PEER_TIMEOUT_MS, ENDURED_SILENCE_MS, StreamConnection, tune
from architect.silo.stream_messages import TunnelHello, TunnelTaken


class _Plain(socket.socket):
    """TCP that ends one direction as TLS does."""

    def unwrap(self) -> None:
        self.shutdown(socket.SHUT_WR)


class _Connection(StreamConnection):
    """One without TLS and frames, over TCP to nobody."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.plain = _Plain()
            self.plain.connect(server.getsockname())
            self.other, _ = server.accept()
        tune(self.plain)
        super().__init__(cast("Any", self.plain), "peer")
        self.sent: list[object] = []

    def send(self, message: object, body: memoryview | bytes = b"") -> None:
        self.sent.append(message)

    def take_socket(self) -> Any:
        return self.plain

    @property
    def takes_packed(self) -> bool:
        return False

    @property
    def silence_ms(self) -> int:
        return self.plain.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)


def test_a_link_that_a_client_at_the_target_takes_endures_silence_from_then_on(tmp_path: Path) -> None:
    path = tmp_path / "disk.sock"
    tunnel = DiskTunnel("disk", str(path), TunnelEnd.LISTENS, None, RateLimit(0))
    up, down = _Connection(), _Connection()
    for half, is_upward in ((up, True), (down, False)):
        tunnel.take(half, TunnelHello("disk", 0, is_upward, True))
    assert (up.silence_ms, down.silence_ms) == (DEAD_PEER_TIMEOUT_MS, DEAD_PEER_TIMEOUT_MS)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"read")
        assert down.other.recv(4) == b"read", "what is sent to the source's end comes by now"
        assert down.sent == [TunnelTaken()]
        assert (up.silence_ms, down.silence_ms) == (ENDURED_SILENCE_MS, ENDURED_SILENCE_MS)
    tunnel.close()
    for half in (up, down):
        half.other.close()
        half.plain.close()
