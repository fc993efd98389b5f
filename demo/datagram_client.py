"""Datagrams with numbers to the VM and back: what is lost, what comes late, and how long nothing came.

The service sends each one back (UDP 7001). Times are taken when a datagram is handed over by the kernel, so a gap is as long as
the silence that a client of the VM sees, to about a millisecond on an idle machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time

import msgspec

from architect.errors import UnavailableError

HEADER = struct.Struct("<QQQQ")
NOTED_GAP_S = 0.02
GAPS_MAX = 1000
RECEIVE_BUFFER_BYTES = 8 << 20
_SO_RCVBUFFORCE = 33
_LAST_WAIT_S = 2.0


class Gap(msgspec.Struct, frozen=True):
    """A silence: when it ended (CLOCK_MONOTONIC), and how long it was."""

    end_s: float
    length_ms: float


class DatagramReport(msgspec.Struct, frozen=True):
    """What became of the datagrams. Lost ones are known as such only after `run` has ended; until then they may be on their way."""

    sent: int
    received: int
    lost: int
    reordered: int
    duplicated: int
    longest_gap_ms: float
    longest_round_trip_ms: float
    gaps: tuple[Gap, ...]


class DatagramClient(asyncio.DatagramProtocol):
    """Sends `rate_per_s` datagrams of `size_bytes` a second to `address:port`, and counts the answers."""

    def __init__(self, address: str, port: int = 7001, rate_per_s: float = 200.0, size_bytes: int = 200) -> None:
        self._peer = (address, port)
        self._interval_s = 1.0 / rate_per_s
        self._padding = bytes(size_bytes - HEADER.size)
        self._sent = 0
        self._seen: set[int] = set()
        self._all_below = 0
        self._highest = -1
        self._reordered = self._duplicated = self._received = 0
        self._arrived_s: float | None = None
        self._longest_gap_s = self._longest_trip_s = 0.0
        self._gaps: list[Gap] = []
        self._is_sending = False

    async def run(self, stop: asyncio.Event) -> DatagramReport:
        """Send until `stop`, then wait for the last answers.

        Raises:
            UnavailableError: there is no way to the address.
        """
        loop = asyncio.get_running_loop()
        try:
            transport, _ = await loop.create_datagram_endpoint(lambda: self, remote_addr=self._peer)
        except OSError as error:
            raise UnavailableError(f"datagrams to {self._peer[0]}", str(error), "see whether the VM runs") from error
        _widen(transport.get_extra_info("socket"))
        try:
            await self._send(transport, stop)
            await self._wait_last()
        finally:
            transport.close()
        return self.report()

    def report(self) -> DatagramReport:
        """The counts so far."""
        silent_s = time.monotonic() - self._arrived_s if self._is_sending and self._arrived_s is not None else 0.0
        return DatagramReport(
            sent=self._sent,
            received=self._received,
            lost=self._sent - self._received,
            reordered=self._reordered,
            duplicated=self._duplicated,
            longest_gap_ms=max(self._longest_gap_s, silent_s) * 1000,
            longest_round_trip_ms=self._longest_trip_s * 1000,
            gaps=tuple(self._gaps),
        )

    def reset_gap(self) -> None:
        """Measure the longest gap and round trip from now on."""
        self._longest_gap_s = self._longest_trip_s = 0.0

    def datagram_received(self, data: bytes, addr: object) -> None:
        """Count an answer."""
        now_s = time.monotonic()
        if len(data) < HEADER.size:
            return
        sequence, sent_ns, _, _ = HEADER.unpack_from(data)
        self._note_arrival(now_s)
        self._longest_trip_s = max(self._longest_trip_s, now_s - sent_ns / 1e9)
        if sequence < self._all_below or sequence in self._seen:
            self._duplicated += 1
            return
        self._received += 1
        self._reordered += sequence < self._highest
        self._highest = max(self._highest, sequence)
        self._seen.add(sequence)
        while self._all_below in self._seen:
            self._seen.remove(self._all_below)
            self._all_below += 1

    def error_received(self, exc: Exception) -> None:
        """An ICMP error: the datagram counts as lost, which the report says."""

    def _note_arrival(self, now_s: float) -> None:
        if self._arrived_s is not None:
            gap_s = now_s - self._arrived_s
            self._longest_gap_s = max(self._longest_gap_s, gap_s)
            if gap_s >= NOTED_GAP_S and len(self._gaps) < GAPS_MAX:
                self._gaps.append(Gap(now_s, gap_s * 1000))
        self._arrived_s = now_s

    async def _send(self, transport: asyncio.DatagramTransport, stop: asyncio.Event) -> None:
        next_s = time.monotonic()
        self._is_sending = True
        while not stop.is_set():
            transport.sendto(HEADER.pack(self._sent, time.monotonic_ns(), 0, 0) + self._padding)
            self._sent += 1
            # A late wake-up is made up for only a little: a client that was held up should not send a flood.
            next_s = max(next_s + self._interval_s, time.monotonic() - 5 * self._interval_s)
            await asyncio.sleep(max(0.0, next_s - time.monotonic()))
        self._is_sending = False

    async def _wait_last(self) -> None:
        """Until all are here, or nothing has come for a while: a busy guest may have many left to answer."""
        silent_since_s, received = time.monotonic(), self._received
        while self._received < self._sent and time.monotonic() < silent_since_s + _LAST_WAIT_S:
            await asyncio.sleep(0.01)
            if self._received > received:
                silent_since_s, received = time.monotonic(), self._received


def _widen(connection: socket.socket) -> None:
    """Room for what comes while this process waits for a busy machine's processor: the usual 208 KiB hold some 250 datagrams, and
    more would be dropped here, at the witness, and be counted as lost by the VM (measured)."""
    try:
        connection.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
    except OSError:  # not root
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
