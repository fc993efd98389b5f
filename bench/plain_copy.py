"""Plain copy: what our transfer is compared with. One process reads a file of memory and sends it over one TCP connection, another
one receives it into a fresh one; a mebibyte a call, one byte behind the other. With TLS it uses the contexts of our own streams.

`pwrite` into a fresh memfd, because that was the fastest of what was tried: into a mapping, one that is populated before, one that
is allocated before (see docs/operations/benchmarks.md).
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from multiprocessing.connection import Connection
from pathlib import Path

from architect.errors import HostError
from architect.runtime.tls import client_context, san_name, server_context

CHUNK_BYTES = 1 << 20
TIMEOUT_S = 120.0


class PlainCopyError(HostError):
    """The copy that is compared with failed."""


def plain_copy(size_bytes: int, tls: tuple[Path, Path, str] | None) -> tuple[float, float]:
    """Copy `size_bytes` from one new process to another; returns the seconds and the CPU seconds of both.

    :param tls: the folders of the sender's and the receiver's certificates, and the receiver's common name; None: not encrypted.

    Raises:
        PlainCopyError: one of them failed.
    """
    context = multiprocessing.get_context("spawn")
    results, theirs = context.Pipe(duplex=False)
    receiver = context.Process(target=_receive, args=(size_bytes, tls, theirs))
    receiver.start()
    sender = None
    try:
        port, _ = _next(results)
        sender = context.Process(target=_send, args=(int(port), size_bytes, tls, theirs))
        sender.start()
        (seconds, cpu_s), (others, others_cpu_s) = _next(results), _next(results)
        return max(seconds, others), cpu_s + others_cpu_s
    finally:
        for process in (receiver, sender):
            if process is not None:
                process.kill()
                process.join()


def _next(results: Connection) -> tuple[float, float]:
    if not results.poll(TIMEOUT_S):
        raise PlainCopyError("plain copy", f"not done in {TIMEOUT_S:.0f} s", "see the machine's load")
    first, second = results.recv()
    return float(first), float(second)


def _send(port: int, size_bytes: int, tls: tuple[Path, Path, str] | None, results: Connection) -> None:
    source = os.memfd_create("plain-source")
    chunk = memoryview(bytearray(os.urandom(CHUNK_BYTES)))
    for at in range(0, size_bytes, CHUNK_BYTES):
        os.pwrite(source, chunk, at)
    connection = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if tls is not None:
        connection = client_context(tls[0]).wrap_socket(connection, server_hostname=san_name(tls[2]))
    connection.settimeout(TIMEOUT_S)
    start_s, cpu_s = time.perf_counter(), time.process_time()
    for at in range(0, size_bytes, CHUNK_BYTES):
        os.preadv(source, [chunk], at)
        connection.sendall(chunk)
    connection.recv(1)
    results.send((time.perf_counter() - start_s, time.process_time() - cpu_s))


def _receive(size_bytes: int, tls: tuple[Path, Path, str] | None, results: Connection) -> None:
    target = os.memfd_create("plain-target")
    os.ftruncate(target, size_bytes)
    server = socket.create_server(("127.0.0.1", 0))
    results.send((server.getsockname()[1], 0))
    connection, _ = server.accept()
    if tls is not None:
        context = server_context(tls[1])
        context.num_tickets = 0
        connection = context.wrap_socket(connection, server_side=True)
    chunk = memoryview(bytearray(CHUNK_BYTES))
    start_s, cpu_s = time.perf_counter(), time.process_time()
    for at in range(0, size_bytes, CHUNK_BYTES):
        filled = 0
        while filled < CHUNK_BYTES:
            filled += connection.recv_into(chunk[filled:])
        os.pwrite(target, chunk, at)
    connection.sendall(b"d")
    results.send((time.perf_counter() - start_s, time.process_time() - cpu_s))
