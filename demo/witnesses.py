"""The demo's witnesses: clients outside the fabric that hold streams and datagrams to the VM and would notice any loss.

Several checksummed TCP streams that clients opened, one that the VM opened to a server out here, and a stream of numbered
datagrams at 1 ms, whose silences are the gaps. Twice a second a sample of the verified bytes is kept for the picture.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec

from architect.errors import ArchitectError
from demo.datagram_client import DatagramClient, DatagramReport
from demo.stream_client import OutsideServer, ServiceStatus, StreamClient, StreamReport, read_status

STREAMS = 4
STREAM_RATE_BYTES_S = 100_000
DATAGRAM_RATE_S = 1000.0
SAMPLE_S = 0.25
STATUS_PATIENCE_S = 60.0
RETRY_S = 0.5


class Evidence(msgspec.Struct, frozen=True):
    """What the witnesses saw in the end."""

    streams: tuple[StreamReport, ...]
    datagrams: DatagramReport
    throughput: tuple[tuple[float, float], ...]
    gaps: tuple[tuple[float, float], ...]
    longest_gap_ms: float
    datagrams_seen: int
    """By the VM."""

    @property
    def broken(self) -> list[str]:
        """What went wrong with streams."""
        return [f"{report.name}: {report.error}" for report in self.streams if report.error]


class Witnesses:
    """All clients of one demo."""

    def __init__(self, outside: OutsideServer) -> None:
        self._outside = outside
        self._stop = asyncio.Event()
        self._throughput: list[tuple[float, float]] = []
        self._tasks: list[asyncio.Task[Any]] = []
        self._clients: list[StreamClient] = []
        self._datagrams: DatagramClient | None = None
        self._address = ""
        self._longest_gap_ms: float | None = None

    async def begin_when_ready(self, group: asyncio.TaskGroup, address: str, deadline_s: float) -> None:
        """Open everything, once the service answers.

        Raises:
            UnavailableError: it does not by `deadline_s` (monotonic).
        """
        self._address = address
        await self.status(deadline_s)
        self._clients = [StreamClient(f"stream {n}", address, 1000 + n, STREAM_RATE_BYTES_S) for n in range(STREAMS)]
        self._datagrams = DatagramClient(address, rate_per_s=DATAGRAM_RATE_S)
        runs = [*(client.run(self._stop) for client in self._clients), self._datagrams.run(self._stop)]
        self._tasks = [group.create_task(_outcome(run)) for run in runs]
        group.create_task(self._sample())

    async def status(self, deadline_s: float | None = None) -> ServiceStatus:
        """What the service in the VM says of itself; asked again until `deadline_s` (monotonic; or for `STATUS_PATIENCE_S`), since
        a busy machine may be late with one answer.

        Raises:
            UnavailableError, PeerError: why the last try failed.
        """
        end_s = time.monotonic() + STATUS_PATIENCE_S if deadline_s is None else deadline_s
        while True:
            try:
                return await read_status(self._address)
            except ArchitectError:
                if time.monotonic() > end_s:
                    raise
                await asyncio.sleep(RETRY_S)

    def reset_gap(self) -> None:
        """Measure the longest gap from now on. The first call begins what the evidence tells of: what was before is the boot's."""
        assert self._datagrams is not None
        self._longest_gap_ms = 0.0 if self._longest_gap_ms is None else self.longest_gap_so_far_ms()
        self._datagrams.reset_gap()

    def longest_gap_ms(self) -> float:
        """The longest silence since `reset_gap`."""
        assert self._datagrams is not None
        return self._datagrams.report().longest_gap_ms

    def longest_gap_so_far_ms(self) -> float:
        """The longest silence since the first `reset_gap`."""
        return max(self._longest_gap_ms or 0.0, self.longest_gap_ms())

    def lost_so_far(self) -> int:
        """Datagrams without an answer, those on their way included."""
        assert self._datagrams is not None
        return self._datagrams.report().lost

    async def finish(self) -> Evidence:
        """End all streams in order and collect what was seen."""
        assert self._datagrams is not None
        outside = [stream.report() for stream in self._outside.streams]
        self._stop.set()
        await asyncio.gather(*self._tasks)
        offset_s = time.time() - time.monotonic()
        datagrams = self._datagrams.report()
        gaps = tuple((gap.end_s + offset_s, gap.length_ms) for gap in datagrams.gaps)
        streams = (*(client.report() for client in self._clients), *outside)
        seen = (await self.status()).datagrams
        return Evidence(streams, datagrams, tuple(self._throughput), gaps, self.longest_gap_so_far_ms(), seen)

    async def _sample(self) -> None:
        last_bytes, last_s = 0, time.monotonic()
        while not self._stop.is_set():
            await asyncio.sleep(SAMPLE_S)
            seen_bytes = sum(client.report().bytes_verified for client in self._clients)
            now_s = time.monotonic()
            self._throughput.append((time.time(), (seen_bytes - last_bytes) / (now_s - last_s)))
            last_bytes, last_s = seen_bytes, now_s


async def _outcome(work: Any) -> None:
    """Run a client to its end; its report has the error, too."""
    try:
        await work
    except Exception as error:  # a witness that fails must not silence the others
        print(f"  witness: {error}")
