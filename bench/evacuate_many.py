"""`make bench NAME=evacuate_many`: a host with 1, 5 and 20 VMs is drained; how long that takes, and each flow's gap from outside.

The guests are idle but for an echo, which one process asks at each of them every 20 ms. See docs/operations/benchmarks.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from architect.errors import ArchitectError, UnavailableError
from bench.document_file import commit
from bench.flow_probes import INTERVAL_S
from bench.gap_window import GapReport
from bench.guest_image import guest_image
from bench.json_file import write_json
from bench.private_namespace import run_alone
from bench.process_costs import Cost, costs
from demo.console import say
from demo.fabric_commands import Fabric

COUNTS = (1, 5, 20)
MEMORY_MIB = 128
HOSTS = ("aws-1", "gcp-1")
FIRST_PORT = 7100
GUEST_PORT = 7001
SETTLE_S = 2.0
LATE_S_MAX = 10.0
READY_S = 300.0
STARTS_AT_ONCE = 2
LASTING = ("architect control", "architect edge", "architect agent")
_ROOT = Path(__file__).resolve().parents[1]


class Row(msgspec.Struct, frozen=True):
    """One evacuation, or the medians of several of as many VMs."""

    vms: int
    memory_mib: int
    total_s: float
    gap_ms_p50: float
    gap_ms_max: float


class Run(msgspec.Struct, frozen=True):
    """One evacuation as it was. `moves` are what `architect migrate --json` would tell of each; `costs` the processes after it,
    `spent` the CPU seconds of those that lasted."""

    vms: int
    number: int
    load: float
    total_s: float
    gaps: tuple[GapReport, ...]
    moves: tuple[dict[str, Any], ...]
    spent: dict[str, float]
    costs: tuple[Cost, ...]
    error: str = ""


class Document(msgspec.Struct, frozen=True):
    """What is written. A gap is known to `probe_interval_ms`."""

    cores: int
    kernel: str
    commit: str
    probe_interval_ms: float
    rows: tuple[Row, ...]
    raw: tuple[Run, ...]


class Options(msgspec.Struct, frozen=True):
    """What to measure."""

    counts: tuple[int, ...]
    memory_mib: int
    runs: int
    out: Path


def main(words: list[str]) -> int:
    """Run the benchmark; the exit status. What was measured until Ctrl-C is written."""
    options = parse(words)
    runs: list[Run] = []
    return run_alone(lambda scratch: _measure(options, scratch, runs), lambda: _write(options, runs))


def parse(words: list[str]) -> Options:
    """The options of a command line."""
    parser = argparse.ArgumentParser(prog="bench evacuate_many", description=__doc__)
    parser.add_argument("--vms", type=_counts, default=COUNTS, metavar="N,…", help="how many VMs (1,5,20)")
    parser.add_argument("--memory", type=int, default=MEMORY_MIB, metavar="MIB", help="memory of each")
    parser.add_argument("--runs", type=int, default=2, help="evacuations for each number: there, and back, …")
    parser.add_argument("--out", type=Path, default=Path("out/bench/evacuate_many.json"), help="where the figures go")
    found = parser.parse_args(words)
    return Options(found.vms, found.memory, found.runs, found.out)


def _counts(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdigit() and 0 < int(part) <= 100 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not N,…")
    return tuple(map(int, parts))


def rows_of(runs: list[Run]) -> tuple[Row, ...]:
    """One row for each number of VMs that was measured without an error: medians over its runs, and the longest gap of all."""
    rows = []
    for count in dict.fromkeys(run.vms for run in runs):
        good = [run for run in runs if run.vms == count and not run.error]
        if good:
            gaps = [gap.gap_ms for run in good for gap in run.gaps]
            total_s = statistics.median(run.total_s for run in good)
            rows.append(Row(count, _memory_mib(good[0]), round(total_s, 2), round(statistics.median(gaps), 1), round(max(gaps), 1)))
    return tuple(rows)


def _memory_mib(run: Run) -> int:
    return int(run.moves[0]["memory_bytes"]) >> 20 if run.moves else 0


async def _measure(options: Options, scratch: Path, runs: list[Run]) -> None:
    image = await asyncio.to_thread(guest_image, scratch / "image")
    commands = Fabric(scratch / "fabric")
    try:
        up = await commands.up(len(HOSTS))
        address = up["edge"]["addresses"][0]
        for count in options.counts:
            await _measure_count(options, commands, scratch / "fabric", image, address, count, runs)
    finally:
        await asyncio.shield(commands.down())


async def _measure_count(
    options: Options, commands: Fabric, state_dir: Path, image: str, address: str, count: int, runs: list[Run]
) -> None:
    say(f"{count} VMs: starting them")
    names = [f"many-{number:02}" for number in range(count)]
    await _start_all(options, commands, image, names)
    try:
        async with _probing(address, count) as probes:
            await probes.wait_ready()
            for number in range(1, options.runs + 1):
                run = await _evacuate(commands, state_dir, probes, count, number)
                runs.append(run)
                gaps = [gap.gap_ms for gap in run.gaps] or [0.0]
                say(
                    f"  run {number}: {run.total_s:.1f} s, gap median {statistics.median(gaps):.0f} ms, most {max(gaps):.0f} ms, "
                    f"{sum(gap.lost for gap in run.gaps)} lost, load {run.load:.1f} {run.error}"
                )
    finally:
        for name in names:
            with contextlib.suppress(ArchitectError):
                await commands.command("rm", "--force", name, "--json")


async def _start_all(options: Options, commands: Fabric, image: str, names: list[str]) -> None:
    slots = asyncio.Semaphore(STARTS_AT_ONCE)

    async def start(index: int, name: str) -> None:
        async with slots:
            publish = f"{FIRST_PORT + index}:{GUEST_PORT}/udp"
            words = ("--name", name, "--host", HOSTS[0], "--memory", f"{options.memory_mib}M", "--publish", publish)
            await commands.command("run", *words, "--json", image, "--", "/bin/sleep", "1000000")

    async with asyncio.TaskGroup() as group:
        for index, name in enumerate(names):
            group.create_task(start(index, name))


async def _evacuate(commands: Fabric, state_dir: Path, probes: _Probes, count: int, number: int) -> Run:
    """Drain the host that has the VMs, and open it again."""
    source = (await commands.inspect("many-00"))["host"]
    vms = tuple([(await commands.inspect(f"many-{index:02}"))["id"] for index in range(count)])
    before = {cost.kind: cost.cpu_s for cost in costs(state_dir, vms)}
    load, known = os.getloadavg()[0], len(await commands.migrations())
    await probes.order("reset")
    began_s, error = time.monotonic(), ""
    try:
        await commands.command("host", "drain", source, "--json", timeout_s=600)
    except ArchitectError as failure:
        error = str(failure)
    total_s = time.monotonic() - began_s
    await asyncio.sleep(SETTLE_S)
    gaps = await probes.settled()
    after = costs(state_dir, vms)
    spent = {cost.kind: round(cost.cpu_s - before[cost.kind], 2) for cost in after if cost.kind in LASTING}
    moves = tuple((await commands.migrations())[known:])
    await commands.command("host", "drain", source, "--off", "--json")
    return Run(count, number, round(load, 2), round(total_s, 2), gaps, moves, spent, after, error)


class _Probes:
    """The client outside: a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def order(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(word.encode() + b"\n")
        await self._process.stdin.drain()

    async def report(self) -> tuple[GapReport, ...]:
        assert self._process.stdout is not None
        await self.order("report")
        return tuple(msgspec.json.decode(await self._process.stdout.readline(), type=list[GapReport]))

    async def settled(self) -> tuple[GapReport, ...]:
        """The windows once no answer comes late any more: a busy guest works off first what has waited for it."""
        reports = await self.report()
        end_s = time.monotonic() + LATE_S_MAX
        while any(report.lost for report in reports) and time.monotonic() < end_s:
            await asyncio.sleep(1.0)
            reports = await self.report()
        return reports

    async def wait_ready(self) -> None:
        """Until every guest answers, and did so for a moment without a loss."""
        end_s = time.monotonic() + READY_S
        while time.monotonic() < end_s:
            await self.order("reset")
            await asyncio.sleep(3.0)
            reports = await self.report()
            if all(report.received and not report.lost and report.gap_ms < 1000 for report in reports):
                return
        raise UnavailableError("the guests", f"do not all answer in {READY_S:.0f} s", "see the fabric's logs")


@contextlib.asynccontextmanager
async def _probing(address: str, count: int) -> AsyncIterator[_Probes]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.flow_probes", address, str(FIRST_PORT), str(count)),
        cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, limit=16 << 20,
    )  # fmt: skip
    try:
        yield _Probes(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _write(options: Options, runs: list[Run]) -> None:
    rows = rows_of(runs)
    cores = len(os.sched_getaffinity(0))
    document = Document(cores, os.uname().release, commit(), INTERVAL_S * 1000, rows, tuple(runs))
    write_json(options.out, document)
    print("\n vms  memory     total   gap p50   gap max")
    for row in rows:
        print(f"{row.vms:4} {row.memory_mib:4} MiB {row.total_s:7.1f} s {row.gap_ms_p50:6.1f} ms {row.gap_ms_max:6.1f} ms")
    print(f"written to {options.out}", flush=True)
