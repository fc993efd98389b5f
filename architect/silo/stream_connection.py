"""Stream connection: frames over one blocking TLS connection. One thread at a time uses it, for reading and writing alike.

(OpenSSL allows no read beside a write on one connection; so acknowledgements are asked for, and the demand connection is served
from one thread that waits for both the guest and the peer.) A dead peer is found by TCP keepalive and TCP_USER_TIMEOUT.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from typing import NamedTuple, TypeVar, cast

from architect.errors import UnavailableError
from architect.silo.exact_bytes import fill, receive_exactly
from architect.silo.stream_messages import Refused, StreamMessage, Welcome
from architect.wire.framing import CHECK_VERSION, PREFIX, FrameCodec, FrameError

HANDSHAKE_TIMEOUT_S = 5.0
SEND_TIMEOUT_S = 10.0
DEAD_PEER_TIMEOUT_MS = 8000
ENDURED_SILENCE_MS = 60_000
_SMALL_BODY_BYTES = 16 << 10
# linux/tcp.h: struct tcp_info: since when (ms) neither data nor, after it, an acknowledgement was received.
_TCP_INFO_SILENCE = struct.Struct("@52xII")
# The same, since Linux 4.10: bytes acked; busy, receiver's window limited, send buffer limited (µs).
_TCP_INFO_LIMITS = struct.Struct("@120xQ40xQQQ")
PACKED_PROTOCOL = "architect-memory-zstd"

MessageT = TypeVar("MessageT")


class StreamLostError(UnavailableError):
    """A data connection ended or its peer stopped answering."""


class StreamRefusedError(UnavailableError):
    """The peer does not accept the connection."""


class LinkReading(NamedTuple):
    """What the kernel tells of a connection: bytes that the peer's kernel has, and how long data has waited for the network between
    (not for the peer to read, nor for us to write)."""

    acked_bytes: int
    limited_s: float


class StreamConnection:
    """Sends and receives frames.

    :param tls: connected, the handshake done; owned from now on.
    :param peer: how errors name the other side.
    """

    def __init__(self, tls: ssl.SSLSocket, peer: str, body_bytes_max: int = 0) -> None:
        self._tls = tls
        self._codec: FrameCodec[StreamMessage] = FrameCodec(StreamMessage, peer)
        self._body = memoryview(bytearray(body_bytes_max))
        self.peer = peer
        self.bytes_sent = 0

    def allow_bodies(self, body_bytes_max: int) -> None:
        """Take frames with bodies from now on."""
        self._body = memoryview(bytearray(body_bytes_max))

    def send(self, message: StreamMessage, body: memoryview | bytes = b"") -> None:
        """Send one frame.

        Raises:
            StreamLostError: the connection ended, or the peer took nothing for `SEND_TIMEOUT_S`.
        """
        head = self._codec.encode(message, len(body))
        try:
            self._tls.settimeout(SEND_TIMEOUT_S)
            if len(body) <= _SMALL_BODY_BYTES:
                self._tls.sendall(head + bytes(body))
            else:
                self._tls.sendall(head)
                self._tls.sendall(body)
        except (OSError, ValueError) as error:
            raise self._lost(error) from error
        self.bytes_sent += len(head) + len(body)

    def receive(self, timeout_s: float | None) -> tuple[StreamMessage, memoryview]:
        """The next frame; its body is valid until the next call. `timeout_s` None waits as long as the peer lives.

        Raises:
            StreamLostError: the connection ended, or the time is over.
            FrameError: it is no frame, or its body is longer than this connection takes.
        """
        try:
            self._tls.settimeout(timeout_s)
            head_bytes, body_bytes = self._codec.lengths(receive_exactly(self._tls, PREFIX.size))
            if body_bytes > len(self._body):
                raise FrameError(self.peer, f"sent a body of {body_bytes} bytes", CHECK_VERSION)
            head = receive_exactly(self._tls, head_bytes)
            body = self._body[:body_bytes]
            if fill(self._tls, body) < body_bytes:
                raise ConnectionResetError("the peer ended it")
        except (OSError, ValueError) as error:
            raise self._lost(error) from error
        return self._codec.decode(head), body

    def receive_as(self, kind: type[MessageT], timeout_s: float | None) -> MessageT:
        """The next frame, which has to be of this kind.

        Raises:
            FrameError: it is another one; otherwise as `receive`.
        """
        message, _ = self.receive(timeout_s)
        if not isinstance(message, kind):
            raise FrameError(self.peer, f"sent {type(message).__name__} for {kind.__name__}", CHECK_VERSION)
        return message

    def has_pending(self) -> bool:
        """Whether bytes have arrived that poll(2) on the descriptor does not show."""
        return self._tls.pending() > 0

    def fileno(self) -> int:
        """The socket's descriptor, for poll(2)."""
        return self._tls.fileno()

    @property
    def bytes_acked(self) -> int:
        """How many bytes the peer's kernel has: unlike `bytes_sent` not those that wait in buffers here. Any thread may ask."""
        return self.link_reading().acked_bytes

    def link_reading(self) -> LinkReading:
        """How the network has taken what was sent so far. Any thread may ask."""
        try:
            info = self._tls.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_LIMITS.size)
            acked, busy_us, window_us, buffer_us = _TCP_INFO_LIMITS.unpack(info)
        except (OSError, struct.error):  # it has ended already
            return LinkReading(self.bytes_sent, 0.0)
        return LinkReading(acked, max(busy_us - window_us - buffer_us, 0) / 1e6)

    def silent_s(self) -> float | None:
        """How long nothing was heard from the peer's kernel, which answers a keepalive every second or two; None if the connection
        was closed. Any thread may ask."""
        try:
            data_ms, ack_ms = _TCP_INFO_SILENCE.unpack(
                self._tls.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SILENCE.size)
            )
        except (OSError, struct.error):
            return None
        return float(min(data_ms, ack_ms)) / 1e3

    @property
    def takes_packed(self) -> bool:
        """Whether both ends have agreed on packed pages (ALPN, RFC 7301)."""
        return self._tls.selected_alpn_protocol() == PACKED_PROTOCOL

    def endure(self) -> None:
        """From now on a peer may be silent for `ENDURED_SILENCE_MS`: for what nobody could take up again."""
        with contextlib.suppress(OSError):  # it has ended already
            self._tls.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, ENDURED_SILENCE_MS)

    def take_socket(self) -> ssl.SSLSocket:
        """The TLS socket itself, for bytes that are no frames."""
        return self._tls

    def interrupt(self) -> None:
        """End the connection from another thread: its reads and writes fail at once. Idempotent."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._tls, socket.SHUT_RDWR)  # SSLSocket.shutdown would drop TLS under the reader

    def close(self) -> None:
        """End the connection; by the thread that uses it. Idempotent."""
        self.interrupt()
        with contextlib.suppress(OSError):
            self._tls.close()

    def _lost(self, error: Exception) -> StreamLostError:
        cause = "no progress in time" if isinstance(error, TimeoutError) else str(error)
        return StreamLostError(self.peer, f"data connection lost ({cause})", "see the other host and the network between")


def dial(
    address: tuple[str, int], tls: ssl.SSLContext, server_name: str, hello: StreamMessage, body_bytes_max: int = 0,
    timeout_s: float = HANDSHAKE_TIMEOUT_S,
) -> StreamConnection:  # fmt: skip
    """Connect to a peer's memory process and say `hello`.

    Raises:
        StreamLostError: nobody answers there, or TLS fails.
        StreamRefusedError: the peer refuses; says why.
    """
    peer = f"memory process at {address[0]}:{address[1]}"
    try:
        plain = socket.create_connection(address, timeout_s)
        tune(plain)
        plain.settimeout(timeout_s)
        secure = tls.wrap_socket(plain, server_hostname=server_name, suppress_ragged_eofs=False)
    except (OSError, ValueError) as error:
        raise StreamLostError(peer, f"cannot connect ({error})", "see the other host and the network between") from error
    connection = StreamConnection(secure, peer, body_bytes_max)
    try:
        connection.send(hello)
        welcome(connection, timeout_s)
    except BaseException:
        connection.close()
        raise
    return connection


def welcome(connection: StreamConnection, timeout_s: float) -> None:
    """Wait until the peer accepts.

    Raises:
        StreamRefusedError: it does not; otherwise as `receive`.
    """
    answer, _ = connection.receive(timeout_s)
    if isinstance(answer, Refused):
        raise StreamRefusedError(connection.peer, f"refused: {answer.cause}", "see the target's log")
    if not isinstance(answer, Welcome):
        raise FrameError(connection.peer, f"sent {type(answer).__name__} for Welcome", "check that it is an Architect")


def tune(plain: socket.socket) -> None:
    """Send at once, and find a dead peer in `DEAD_PEER_TIMEOUT_MS`."""
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 2)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 5)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_PEER_TIMEOUT_MS)


def common_name(tls: ssl.SSLSocket) -> str:
    """The common name in the peer's certificate, "" if it has none."""
    subject = cast("tuple[tuple[tuple[str, str], ...], ...]", (tls.getpeercert() or {}).get("subject", ()))
    return next((value for group in subject for key, value in group if key == "commonName"), "")
