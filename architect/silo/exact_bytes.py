"""Exact bytes: as many of a stream as were asked for, however it hands them out. Of any blocking socket, TLS or not."""

from __future__ import annotations

import socket


def fill(sock: socket.socket, buffer: memoryview) -> int:
    """Fill the buffer; returns how many bytes came: fewer than it holds only where the stream ends.

    Raises:
        OSError: the connection broke, or its timeout is over.
    """
    at = 0
    while at < len(buffer) and (count := sock.recv_into(buffer[at:])):
        at += count
    return at


def receive_exactly(sock: socket.socket, count: int) -> bytes:
    """The next `count` bytes.

    Raises:
        ConnectionResetError: the stream ends before them; otherwise as `fill`.
    """
    data = bytearray(count)
    if fill(sock, memoryview(data)) < count:
        raise ConnectionResetError("the peer ended it")
    return bytes(data)
