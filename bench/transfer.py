"""`make bench NAME=transfer`: how fast memory is copied: by our memory processes, by a plain TCP copy, by QEMU's multifd.

All in turns within each round, in one network namespace, over its loopback. See docs/operations/benchmarks.md.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

import msgspec

from architect.errors import ArchitectError
from architect.model.sizes import MIB, PAGE_BYTES
from bench.json_file import write_json
from bench.memory_pair import NAMES, MemoryPair, memory_pair
from bench.multifd_pair import MultifdPair
from bench.plain_copy import plain_copy
from bench.private_namespace import run_alone
from bench.transfer_results import Engine, Sample, TransferDocument, TransferMachine, Way, rows_of, table
from demo.console import say

EXTENTS = (4 << 10, 64 << 10, 256 << 10)
WAYS = ((Engine.TCP, False), (Engine.ARCHITECT, True), (Engine.MULTIFD, False), (Engine.TCP, True), (Engine.MULTIFD, True))


class Options(msgspec.Struct, frozen=True):
    """`memory_mib` is the memory's size, half of which is moved."""

    runs: int
    memory_mib: int
    out: Path


class Contenders(msgspec.Struct, frozen=True):
    """What moves the bytes. `folder` has the certificates of ours."""

    folder: Path
    ours: MemoryPair
    multifd: MultifdPair


def main(words: list[str]) -> int:
    """Run the benchmark; the exit status. What was measured until Ctrl-C is written."""
    options = _parse(words)
    samples: list[Sample] = []
    return run_alone(lambda folder: _measure(options, folder, samples), lambda: _write(options, samples), "/dev/shm")


def _parse(words: list[str]) -> Options:
    parser = argparse.ArgumentParser(prog="make bench NAME=transfer", description="How fast memory is copied.")
    parser.add_argument("--runs", type=int, default=5, help="rounds for each size of extent")
    parser.add_argument("--memory", type=int, default=512, metavar="MIB", help="size of the memory; half of it is moved")
    parser.add_argument("--out", type=Path, default=Path("out/bench/transfer.json"), help="where the figures go")
    found = parser.parse_args(words)
    return Options(found.runs, found.memory, found.out)


async def _measure(options: Options, folder: Path, samples: list[Sample]) -> None:
    for name in ("ours", "qemu"):
        (folder / name).mkdir()
    async with memory_pair(folder / "ours", options.memory_mib * MIB) as ours:
        contenders = Contenders(folder / "ours", ours, MultifdPair(folder / "qemu", options.memory_mib * MIB))
        for extent_bytes in EXTENTS:
            run = extent_bytes // PAGE_BYTES
            await ours.fill(run, 2 * run)
            await contenders.multifd.fill(run, 2 * run)
            for number in range(options.runs + 1):  # the first one warms up
                for engine, tls in WAYS:
                    await _run(Way(engine, extent_bytes, tls), number, options, contenders, samples)


async def _run(way: Way, number: int, options: Options, contenders: Contenders, samples: list[Sample]) -> None:
    size_bytes = options.memory_mib * MIB // 2
    load = os.getloadavg()[0]
    try:
        match way.engine:
            case Engine.ARCHITECT:
                moved_bytes, seconds, cpu_s = await contenders.ours.move()
                assert moved_bytes == size_bytes, f"{moved_bytes} bytes moved"
            case Engine.TCP:
                folder = contenders.folder
                tls = (folder / "tls-source", folder / "tls-target", NAMES["target"]) if way.tls else None
                seconds, cpu_s = await asyncio.to_thread(plain_copy, size_bytes, tls)
            case Engine.MULTIFD:
                seconds, cpu_s = await contenders.multifd.move(tls=way.tls)
    except ArchitectError as error:
        print(f"{way.engine} {way.extent_bytes >> 10} KiB: {error}", file=sys.stderr)
        return
    if number:
        samples.append(Sample(way, number, size_bytes, round(seconds, 4), round(cpu_s, 3), round(load, 2)))
        rate, words = size_bytes / seconds / MIB, f"{way.extent_bytes >> 10:3} KiB {way.engine:12} {'tls' if way.tls else '   '}"
        say(f"run {number} {words} {rate:6.0f} MiB/s, load {load:.1f}")


def _write(options: Options, samples: list[Sample]) -> None:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    processor = names[0].partition(":")[2].strip() if names else ""
    machine = TransferMachine(len(os.sched_getaffinity(0)), processor, os.uname().release, round(os.getloadavg()[0], 2))
    rows = rows_of(samples)
    write_json(options.out, TransferDocument(machine, rows, tuple(samples)))
    print(f"\n{table(rows)}\nwritten to {options.out}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
