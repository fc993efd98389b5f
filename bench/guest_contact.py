"""The benchmark's contact to a guest: the probe that measures its gaps, and the orders that halt its writing or let it go on.

Both talk to bench/image/guest.c by UDP, for both engines alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

import msgspec

from architect.errors import ArchitectError, LostError, UnavailableError
from architect.model.sizes import MIB, PAGE_BYTES
from bench.gap_window import GapReport, Silence
from bench.results import Gap, Written

GUEST_PORT = 7001
ORDER_TIMEOUT_S = 0.5
READY_TIMEOUT_S = 300.0
REPORT_TIMEOUT_S = 5.0
REPORT_POLL_S = 0.02
_PREFIX = b"BENCHCTL"
_PARTS = " | "
_WRITTEN = re.compile(r"(memory|disk)-verify: seconds=.*?written=(\d+)")
_ROOT = Path(__file__).resolve().parents[1]


class Report(msgspec.Struct, frozen=True):
    """What a guest had written by `at_s`, in seconds of our monotonic clock."""

    at_s: float
    memory_mib: float
    disk_mib: float


class GuestContact:
    """Orders to the guest at `address`:`port`, and a probe of it, as a context. `name` is how errors call it."""

    def __init__(self, name: str, address: str, port: int) -> None:
        self._name = name
        self._address = (address, port)
        self._probe: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> GuestContact:
        await self.wait_ready()
        command = (sys.executable, "-m", "bench.gap_probe", self._address[0], str(self._address[1]))
        self._probe = await asyncio.create_subprocess_exec(
            *command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if (probe := self._probe) is not None and probe.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                probe.kill()
            await probe.wait()

    async def work(self) -> None:
        """Let the guest write its memory, and the probe ask it. Raises: as `ask`."""
        await self._order_probe(b"loud\n")
        await self.ask(b"R")

    async def rest(self) -> None:
        """Halt its writing, and the probe: another guest is measured. Raises: as `ask`."""
        await self._order_probe(b"quiet\n")
        await self.ask(b"H")

    async def next_report(self) -> Report:
        """What the verifiers have written as of their next report (one a second), or of the last if REPORT_TIMEOUT_S brings none.

        Raises: as `ask`.
        """
        line = first = await self.ask(b"?")
        end_s = time.monotonic() + REPORT_TIMEOUT_S
        while line == first and time.monotonic() < end_s:
            await asyncio.sleep(REPORT_POLL_S)
            line = await self.ask(b"?")
        return report_of(line, time.monotonic())

    async def is_well(self) -> bool:
        """Whether it answers, and has found nothing wrong."""
        with contextlib.suppress(ArchitectError):
            return are_ready(await self.ask(b"?", 2.0))
        return False

    async def wait_ready(self) -> None:
        """Until the verifiers have filled their memory and their disk.

        Raises:
            LostError: it failed.
            UnavailableError: not within READY_TIMEOUT_S.
        """
        if self._probe is not None:  # a guest that is still at work with itself would drown in datagrams
            await self._order_probe(b"quiet\n")
        end_s = time.monotonic() + READY_TIMEOUT_S
        while True:
            with contextlib.suppress(UnavailableError):
                if are_ready(await self.ask(b"?", 2.0)):
                    return
            if time.monotonic() > end_s:
                raise UnavailableError(self._name, f"is not ready in {READY_TIMEOUT_S:.0f} s", "see its console.log")
            await asyncio.sleep(0.2)

    async def ask(self, order: bytes, timeout_s: float = 10.0) -> str:
        """Give an order; the last line that each verifier has said.

        Raises:
            LostError: its memory is not what it wrote, or it has ended.
            UnavailableError: no answer within `timeout_s`.
        """
        line = await asyncio.to_thread(_ask, self._address, order, timeout_s)
        if line is None:
            raise UnavailableError(self._name, f"does not answer in {timeout_s:g} s", "see its console.log")
        if "FAILED" in line:
            raise LostError(self._name, line, "report this as a defect of who moved it")
        return line

    async def reset_gap(self) -> None:
        """Measure from now on."""
        await self._order_probe(b"reset\n")

    async def gap(self) -> Gap:
        """What was measured since `reset_gap`.

        Raises:
            UnavailableError: the probe is gone.
        """
        assert self._probe is not None and self._probe.stdout is not None
        await self._order_probe(b"report\n")
        try:
            async with asyncio.timeout(REPORT_TIMEOUT_S):
                report = msgspec.json.decode(await self._probe.stdout.readline(), type=GapReport)
        except (TimeoutError, msgspec.DecodeError) as error:
            raise UnavailableError(f"probe of {self._name}", str(error) or "is silent", "see its words on stderr") from error
        silences = tuple(Silence(silence.end_s, round(silence.length_ms, 2)) for silence in report.silences)
        stall_ms = round(report.sender_stall_ms, 2)
        return Gap(round(report.gap_ms, 2), report.sent, report.lost, stall_ms, silences, report.lost_at_s)

    async def _order_probe(self, order: bytes) -> None:
        assert self._probe is not None and self._probe.stdin is not None
        try:
            self._probe.stdin.write(order)
            await self._probe.stdin.drain()
        except OSError as error:
            raise UnavailableError(f"probe of {self._name}", "has ended", "see its words on stderr") from error


def are_ready(line: str) -> bool:
    """Whether each verifier has begun to work, by what they have said last."""
    return all("seconds=" in part for part in line.split(_PARTS))


def report_of(line: str, at_s: float) -> Report:
    """How much each verifier has written, by what they have said last; 0 for one that does not exist."""
    blocks = {kind: int(count) for kind, count in _WRITTEN.findall(line)}
    return Report(at_s, *(blocks.get(kind, 0) * PAGE_BYTES / MIB for kind in ("memory", "disk")))


def written(before: Report, after: Report) -> Written:
    """What was written a second between two reports."""
    passed_s = max(after.at_s - before.at_s, REPORT_POLL_S)
    memory_mib, disk_mib = after.memory_mib - before.memory_mib, after.disk_mib - before.disk_mib
    return Written(round(memory_mib / passed_s, 1), round(disk_mib / passed_s, 1))


def _ask(address: tuple[str, int], order: bytes, timeout_s: float) -> str | None:
    end_s = time.monotonic() + timeout_s
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(address)
        while (left_s := end_s - time.monotonic()) > 0:
            sock.settimeout(min(ORDER_TIMEOUT_S, left_s))
            try:
                sock.send(_PREFIX + order)
                return sock.recv(2048)[len(_PREFIX) :].decode(errors="replace")
            except TimeoutError:
                continue
            except OSError:  # refused: the guest is there, its program not yet
                time.sleep(min(0.1, left_s))
    return None
