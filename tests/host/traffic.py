"""Traffic for network tests: numbered UDP packets and hashed TCP streams, in threads, with what went wrong as values."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator

_NUMBER = struct.Struct(">Q")
_SO_RCVBUFFORCE = 33
_LAST = (1 << 64) - 1  # the number of what is sent after the last packet, to see that none is under way any more
SETTLE_S = 30.0
TCP_BLOCK_BYTES = 16384


class NumberedUdp:
    """Packets with numbers from one socket to an address, `packets_per_s` of them; the receiver notes what arrives."""

    def __init__(self, sender: socket.socket, target: tuple[str, int], receiver: socket.socket, packets_per_s: int) -> None:
        self._sender, self._target, self._receiver = sender, target, receiver
        self._interval_s = 1 / packets_per_s
        self._stop = threading.Event()
        self._ended = threading.Event()
        self._has_last = threading.Event()
        self.sent = 0
        self.received: list[int] = []
        self.gap_s = 0.0
        receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 8 << 20)
        receiver.settimeout(0.1)
        self._threads = [threading.Thread(target=self._receive), threading.Thread(target=self._send)]
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        next_s = time.monotonic()
        while not self._stop.is_set():
            self._sender.sendto(_NUMBER.pack(self.sent), self._target)
            self.sent += 1
            next_s += self._interval_s
            time.sleep(max(0.0, next_s - time.monotonic()))

    def _receive(self) -> None:
        last_s = None
        while not self._ended.is_set():
            try:
                data = self._receiver.recv(100)
            except TimeoutError:
                continue
            (number,) = _NUMBER.unpack(data)
            if number == _LAST:
                self._has_last.set()
                continue
            now_s = time.monotonic()
            self.gap_s = max(self.gap_s, now_s - (last_s or now_s))
            last_s = now_s
            self.received.append(number)

    def stop(self) -> None:
        """Stop sending and end, once what comes after the last packet has arrived, or nothing arrives any more. Idempotent."""
        if self._ended.is_set():
            return
        self._stop.set()
        self._threads[1].join()
        deadline_s = time.monotonic() + SETTLE_S
        while len(self.received) < self.sent and not self._has_last.wait(0.05) and time.monotonic() < deadline_s:
            self._sender.sendto(_NUMBER.pack(_LAST), self._target)
        self._ended.set()
        self._threads[0].join()

    @property
    def lost(self) -> int:
        """Packets that never arrived."""
        return self.sent - len(set(self.received))

    @property
    def reordered(self) -> int:
        """Packets that arrived after one with a higher number."""
        return sum(1 for before, after in itertools.pairwise(self.received) if after <= before)


class HashedTcp:
    """Random data both ways over one connection, `bytes_per_s` each way, hashed at both ends."""

    def __init__(self, left: socket.socket, right: socket.socket, bytes_per_s: int) -> None:
        self._interval_s = TCP_BLOCK_BYTES / bytes_per_s
        self._stop = threading.Event()
        self.errors: list[str] = []
        self.bytes_received = 0
        self._hashes = {name: hashlib.sha256() for name in ("left sent", "left received", "right sent", "right received")}
        self._threads = []
        for name, sock in (("left", left), ("right", right)):
            sock.settimeout(20)
            self._threads.append(threading.Thread(target=self._send, args=(name, sock)))
            self._threads.append(threading.Thread(target=self._receive, args=(name, sock)))
        for thread in self._threads:
            thread.start()

    def _send(self, name: str, sock: socket.socket) -> None:
        with self._noting(f"{name} sends"):
            while not self._stop.is_set():
                block = os.urandom(TCP_BLOCK_BYTES)
                self._hashes[f"{name} sent"].update(block)
                sock.sendall(block)
                time.sleep(self._interval_s)
            sock.shutdown(socket.SHUT_WR)

    def _receive(self, name: str, sock: socket.socket) -> None:
        with self._noting(f"{name} receives"):
            while block := sock.recv(1 << 16):
                self._hashes[f"{name} received"].update(block)
                self.bytes_received += len(block)

    @contextlib.contextmanager
    def _noting(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.errors.append(f"{what}: {error!r}")

    def stop(self) -> None:
        """Send no more, receive the rest, end."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def is_intact(self) -> bool:
        """Whether each side received exactly what the other had sent, and something at all."""
        digest = {name: value.hexdigest() for name, value in self._hashes.items()}
        return (
            not self.errors
            and self.bytes_received > 0
            and digest["left sent"] == digest["right received"]
            and digest["right sent"] == digest["left received"]
        )
