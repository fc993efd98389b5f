"""`make bench NAME=slow_link`: the same VM moved over links of several speeds, compressed as it pays and not at all, in turns.

The guest is redis with records of text and numbers in memory and in its file. See docs/operations/benchmarks.md.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import statistics
import subprocess
from pathlib import Path
from typing import Any

import msgspec

from architect.clouds.local.layout import FabricLayout, StateFolder
from architect.model.compression import Compression
from architect.runtime.namespaces import namespace_path, run_in_namespace
from architect.testing.sample_images import redis_image
from bench.document_file import commit
from bench.json_file import write_json
from bench.private_namespace import run_alone
from demo.console import say
from demo.fabric_commands import Fabric

HOSTS = ("aws-1", "gcp-1")
LINKS = (100, 1000, 0)
WAYS = (Compression.AUTO, Compression.OFF)
PORT = 6379
BATCH = 200
READY_S = 60.0
WORDS = ("anna", "bob", "carol", "dave", "Lisbon", "Vienna", "Osaka", "Montreal", "Nairobi", "Quito", "shipped", "returned", "paid")


class Run(msgspec.Struct, frozen=True):
    """One move. `link_mbit_s` 0 is a link that nothing slows down."""

    link_mbit_s: int
    compression: str
    number: int
    total_s: float
    downtime_ms: float
    bytes_sent: int
    bytes_saved: int
    mode: str
    load: float


class Row(msgspec.Struct, frozen=True):
    """Medians of the moves over one link; `of_off`: their times divided by those without compression of the same round, median."""

    link_mbit_s: int
    compression: str
    total_s: float
    downtime_ms: float
    mib_sent: float
    ratio: float
    of_off: float


class Document(msgspec.Struct, frozen=True):
    """What is written."""

    cores: int
    kernel: str
    commit: str
    rows: tuple[Row, ...]
    raw: tuple[Run, ...]


class Options(msgspec.Struct, frozen=True):
    """What to measure. `data_mib` is how much text redis holds."""

    links: tuple[int, ...]
    runs: int
    memory_mib: int
    data_mib: int
    out: Path


def main(words: list[str]) -> int:
    """Run the benchmark; the exit status. What was measured until Ctrl-C is written."""
    options = parse(words)
    runs: list[Run] = []
    return run_alone(lambda scratch: _measure(options, scratch, runs), lambda: _write(options, runs))


def parse(words: list[str]) -> Options:
    """The options of a command line."""
    parser = argparse.ArgumentParser(prog="bench slow_link", description=__doc__)
    parser.add_argument("--links", type=_links, default=LINKS, metavar="MBIT,…", help="Mbit/s; 0: not slowed (100,1000,0)")
    parser.add_argument("--runs", type=int, default=3, help="moves of each kind over each link")
    parser.add_argument("--memory", type=int, default=256, metavar="MIB", help="memory of the VM")
    parser.add_argument("--data", type=int, default=40, metavar="MIB", help="text in its memory")
    parser.add_argument("--out", type=Path, default=Path("out/bench/slow_link.json"), help="where the figures go")
    found = parser.parse_args(words)
    return Options(found.links, found.runs, found.memory, found.data, found.out)


def _links(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not MBIT,…")
    return tuple(map(int, parts))


def rows_of(runs: list[Run]) -> tuple[Row, ...]:
    """A row for each link and way."""
    rows = []
    off = {(run.link_mbit_s, run.number): run.total_s for run in runs if run.compression == Compression.OFF.value}
    for link, way in dict.fromkeys((run.link_mbit_s, run.compression) for run in runs):
        same = [run for run in runs if (run.link_mbit_s, run.compression) == (link, way)]
        shares = [run.total_s / off[link, run.number] for run in same if (link, run.number) in off]
        sent, saved = sum(run.bytes_sent for run in same), sum(run.bytes_saved for run in same)
        total_s, downtime_ms = (
            statistics.median(values) for values in zip(*((r.total_s, r.downtime_ms) for r in same), strict=True)
        )
        of_off = round(statistics.median(shares), 2) if shares else 0.0
        mib = round(sent / len(same) / 2**20, 1)
        rows.append(Row(link, way, round(total_s, 2), round(downtime_ms, 1), mib, round(1 + saved / sent, 2), of_off))
    return tuple(rows)


async def _measure(options: Options, scratch: Path, runs: list[Run]) -> None:
    image = await asyncio.to_thread(redis_image, scratch / "image")
    commands = Fabric(scratch / "fabric")
    try:
        up = await commands.up(len(HOSTS))
        words = ("--name", "slow", "--host", HOSTS[0], "--memory", f"{options.memory_mib}M", "--publish", f"{PORT}:{PORT}")
        await commands.command("run", *words, "--json", image)
        say("redis runs; it is filled")
        await _fill(up["edge"]["addresses"][0], options.data_mib)
        for target in (HOSTS[1], HOSTS[0]):  # each host has the image's base disk then
            await _move(commands, target, Compression.OFF)
        for link in options.links:
            for host in HOSTS:
                _shape(scratch / "fabric", host, link)
            for number in range(1, options.runs + 1):
                await _round(commands, link, number, runs)
    finally:
        await asyncio.shield(commands.down())


async def _round(commands: Fabric, link: int, number: int, runs: list[Run]) -> None:
    for way in WAYS if number % 2 else reversed(WAYS):  # so that each goes both ways between the hosts
        here, load = (await commands.inspect("slow"))["host"], os.getloadavg()[0]
        move = await _move(commands, next(host for host in HOSTS if host != here), way)
        figures = (move["total_s"], move["downtime_ms"], move["bytes_sent"], move["bytes_saved"], move["mode"])
        runs.append(Run(link, way.value, number, *figures, round(load, 2)))
        name = f"{link} Mbit/s" if link else "not slowed"
        sent, ratio = move["bytes_sent"] / 2**20, move["compression_ratio"]
        say(f"{name}, {way.value}: {move['total_s']:.2f} s, pause {move['downtime_ms']:.0f} ms, {sent:.0f} MiB, 1 : {ratio}")


async def _move(commands: Fabric, target: str, way: Compression) -> dict[str, Any]:
    words = ("migrate", "slow", "--to", target, "--compression", way.value, "--json")
    move: dict[str, Any] = await commands.command(*words, timeout_s=600)
    return move


async def _fill(address: str, data_mib: int) -> None:
    """Give redis records, as many bytes of them."""
    reader, writer = await _connected(address)
    chance, size = random.Random(1), 0
    for first in itertools.count(0, BATCH):
        if size >= data_mib << 20:
            break
        records = [(number, _record(chance, number)) for number in range(first, first + BATCH)]
        size += sum(len(record) for _, record in records)
        batch = [b"*3\r\n$3\r\nSET\r\n$12\r\ndoc:%08d\r\n$%d\r\n%s\r\n" % (at, len(one), one) for at, one in records]
        writer.write(b"".join(batch))
        await writer.drain()
        for _ in range(BATCH):
            await reader.readline()
    writer.close()


async def _connected(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    async with asyncio.timeout(READY_S):
        while True:
            try:
                return await asyncio.open_connection(address, PORT)
            except ConnectionError:  # redis does not listen yet
                await asyncio.sleep(0.2)


def _record(chance: random.Random, number: int) -> bytes:
    noise = chance.getrandbits(128).to_bytes(16, "big").hex()
    numbers = [chance.randint(0, 10**9) for _ in range(20)]
    words = " ".join(chance.choice(WORDS) for _ in range(60))
    return json.dumps({"id": number, "session": noise, "visits": numbers, "text": words}).encode()


def _shape(state_dir: Path, host: str, link_mbit_s: int) -> None:
    """What the host's uplink lets out from now on."""
    namespace = namespace_path(FabricLayout(StateFolder(state_dir).fabric, 0).host_namespace(host))

    def shape() -> None:
        found = subprocess.run(["ip", "-o", "route", "show", "default"], capture_output=True, text=True, check=True).stdout
        device = found.split(" dev ")[1].split()[0]
        subprocess.run(["tc", "qdisc", "del", "dev", device, "root"], check=False, stderr=subprocess.DEVNULL)
        if link_mbit_s:
            words = f"tc qdisc add dev {device} root tbf rate {link_mbit_s}mbit burst 128k latency 50ms"
            subprocess.run(words.split(), check=True)

    run_in_namespace(namespace, shape)


def _write(options: Options, runs: list[Run]) -> None:
    rows = rows_of(runs)
    document = Document(len(os.sched_getaffinity(0)), os.uname().release, commit(), rows, tuple(runs))
    write_json(options.out, document)
    print("\n     link  compression    total  of off     pause  MiB sent  ratio")
    for row in rows:
        link = f"{row.link_mbit_s:4} Mbit" if row.link_mbit_s else "unslowed"
        print(
            f"{link:>9}  {row.compression:11} {row.total_s:6.2f} s {row.of_off:7.2f} {row.downtime_ms:6.0f} ms {row.mib_sent:9.1f} "
            f"{row.ratio:6.2f}"
        )
    print(f"written to {options.out}", flush=True)
