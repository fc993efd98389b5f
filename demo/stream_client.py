"""The demo's outside: streams into the VM, streams that the VM opens, and the VM's status line, all over asyncio.

`StreamClient` opens one stream to the service; `OutsideServer` answers those that the service opens. Both count while they run, so
that the demo can show them: bytes each way, the longest silence, the first error. A stream is over when its task is.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

import msgspec

from architect.errors import PeerError, UnavailableError
from demo.checked_stream import HELLO, CheckedStream, StreamBrokenError, format_hello, parse_hello

STREAM_PORT = 7000
DATAGRAM_PORT = 7001
STATUS_PORT = 7002
TICK_S = 0.02
HEARTBEAT_S = 0.5
ANSWER_DEADLINE_S = 10.0
_READ_BYTES = 65536
_BURST_S = 0.1


class ServiceStatus(msgspec.Struct, frozen=True):
    """The service's status line; see the head of demo/image/service.c."""

    service_pid: int
    started_at_s: float
    uptime_s: float
    cpu_s: float
    fuzzer_pid: int
    fuzzer_restarts: int
    executions: int
    queue_files: int
    streams_open: int
    streams_total: int
    streams_failed: int
    bytes_verified: int
    bytes_sent: int
    datagrams: int
    outside_state: str
    outside_connects: int
    outside_failed: int
    outside_verified: int
    outside_sent: int


class StreamReport(msgspec.Struct, frozen=True):
    """What a stream has done. The longest gap is the longest silence between two arrivals; the service speaks every 20 ms if its
    rate is at least 50 bytes/s."""

    name: str
    bytes_sent: int
    bytes_confirmed: int
    bytes_verified: int
    longest_gap_ms: float
    sent_sha256: str
    verified_sha256: str
    error: str | None


class RunningStream:
    """A checked stream over a connection, sending at a rate until it is told to stop."""

    def __init__(self, stream: CheckedStream, rate_bytes_s: float) -> None:
        self._stream = stream
        self._rate_bytes_s = rate_bytes_s
        self._arrived_s: float | None = None
        self._longest_gap_s = 0.0
        self._error: str | None = None

    def reset_gap(self) -> None:
        """Measure the longest gap from now on."""
        self._longest_gap_s = 0.0

    def report(self) -> StreamReport:
        """The counts so far."""
        silent_s = time.monotonic() - self._arrived_s if self._arrived_s is not None and not self._stream.has_ended else 0.0
        return StreamReport(
            name=self._stream.name,
            bytes_sent=self._stream.sent,
            bytes_confirmed=self._stream.confirmed,
            bytes_verified=self._stream.verified,
            longest_gap_ms=max(self._longest_gap_s, silent_s) * 1000,
            sent_sha256=self._stream.sent_sha256,
            verified_sha256=self._stream.verified_sha256,
            error=self._error,
        )

    async def drive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, stop: asyncio.Event | None) -> None:
        """Send and verify until both have said END (`stop` makes us say it), or for ever without `stop`.

        Raises:
            StreamBrokenError: a byte is wrong, or the connection ended too early. `report` has it too.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                sender = tasks.create_task(self._send(writer, stop))
                await self._receive(reader)
                sender.cancel()
        except* (StreamBrokenError, ConnectionError, TimeoutError) as group:
            error = group.exceptions[0]
            if not isinstance(error, StreamBrokenError):
                error = StreamBrokenError(
                    self._stream.name, self._stream.verified, f"the connection broke: {str(error) or 'no answer in time'}"
                )
            self._error = str(error)
            raise error from group
        finally:
            writer.close()

    async def _send(self, writer: asyncio.StreamWriter, stop: asyncio.Event | None) -> None:
        last_s = frame_s = time.monotonic()
        credit = 0.0
        while stop is None or not stop.is_set():
            await asyncio.sleep(TICK_S)
            now_s = time.monotonic()
            credit += self._rate_bytes_s * min(now_s - last_s, _BURST_S)
            last_s = now_s
            length = min(int(credit), 16384)
            if length or now_s - frame_s > HEARTBEAT_S:
                credit -= length
                frame_s = now_s
                writer.write(self._stream.data_frame(length, time.monotonic_ns()))
                await writer.drain()
        writer.write(self._stream.end_frame(time.monotonic_ns()))
        await asyncio.sleep(ANSWER_DEADLINE_S)
        raise StreamBrokenError(self._stream.name, self._stream.verified, "no END in answer to ours")

    async def _receive(self, reader: asyncio.StreamReader) -> None:
        while not self._stream.has_ended:
            data = await reader.read(_READ_BYTES)
            now_s = time.monotonic()
            if self._arrived_s is not None:
                self._longest_gap_s = max(self._longest_gap_s, now_s - self._arrived_s)
            self._arrived_s = now_s
            if not data:
                self._stream.close()
            self._stream.receive(data)


class StreamClient(RunningStream):
    """A stream that we open to the service at `address:port`, `rate_bytes_s` each way. `seed` makes its data its own."""

    def __init__(self, name: str, address: str, seed: int, rate_bytes_s: int, port: int = STREAM_PORT) -> None:
        super().__init__(CheckedStream(name, seed, is_connector=True), rate_bytes_s)
        self._hello = format_hello(seed, rate_bytes_s)
        self._peer = (address, port)
        self._name = name

    async def run(self, stop: asyncio.Event) -> StreamReport:
        """Open it, keep it until `stop`, end it with both hashes compared.

        Raises:
            UnavailableError: no connection.
            StreamBrokenError: a byte is wrong, or the connection ended too early.
        """
        reader, writer = await _connect(*self._peer, self._name)
        writer.write(self._hello)
        await self.drive(reader, writer, stop)
        return self.report()


class OutsideServer:
    """A server for the streams that the VM opens (OUTSIDE=address:port). `streams` lists them in the order of their opening."""

    def __init__(self) -> None:
        self.streams: list[RunningStream] = []
        self._server: asyncio.Server | None = None
        self._handlers: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def start(self, address: str, port: int = 0) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, address, port)

    async def stop(self) -> None:
        """Close the port and all streams."""
        assert self._server is not None
        self._server.close()
        for handler in self._handlers:
            handler.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        try:
            seed, rate_bytes_s = parse_hello(await asyncio.wait_for(reader.readexactly(HELLO.size), ANSWER_DEADLINE_S))
            running = RunningStream(CheckedStream(f"from the VM {len(self.streams) + 1}", seed, is_connector=False), rate_bytes_s)
            self.streams.append(running)
            # Its error is in its report, where the demo looks.
            with contextlib.suppress(StreamBrokenError):
                await running.drive(reader, writer, None)
        except (StreamBrokenError, TimeoutError, asyncio.IncompleteReadError):
            pass  # Somebody else's connection.
        except asyncio.CancelledError:
            pass  # By `stop`, which waits for us; asyncio's server before 3.12 logs a traceback of a cancelled handler.
        finally:
            writer.close()
            self._handlers.discard(task)


async def read_status(address: str, port: int = STATUS_PORT) -> ServiceStatus:
    """The service's status line.

    Raises:
        UnavailableError: it does not answer.
        PeerError: the answer is not a status line.
    """
    reader, writer = await _connect(address, port, "status")
    try:
        line = await asyncio.wait_for(reader.read(-1), ANSWER_DEADLINE_S)
        return msgspec.json.decode(line, type=ServiceStatus)
    except (TimeoutError, ConnectionError) as error:
        raise UnavailableError(f"status of {address}:{port}", _silence("answer", error), "see whether the VM runs") from error
    except msgspec.DecodeError as error:
        raise PeerError(f"status of {address}:{port}", str(error), "see whether the demo's service answers there") from error
    finally:
        writer.close()


async def _connect(address: str, port: int, name: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    try:
        return await asyncio.wait_for(asyncio.open_connection(address, port), ANSWER_DEADLINE_S)
    except (OSError, TimeoutError) as error:
        raise UnavailableError(f"{name} at {address}:{port}", _silence("connection", error), "see whether the VM runs") from error


def _silence(what: str, error: OSError) -> str:
    """A cause. A deadline's TimeoutError has no words of its own."""
    return f"no {what} in {ANSWER_DEADLINE_S:g} s" if type(error) is TimeoutError and not error.args else f"no {what}: {error}"
