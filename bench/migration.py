"""`make bench NAME=migration`: the same VM moved by us and by QEMU's own migration, in turns, so that noise hits all alike.

Both VMs have the same kernel, init, image and virtual hardware. The one that is not measured halts its writing. Each cell starts
new VMs; each run of an engine begins where the one before it has left its VM. See docs/operations/benchmarks.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import msgspec

from architect.agent.guest_files import GuestFiles, prepare_guest_files
from architect.clouds.local.layout import machine_cache
from architect.drafter.qemu_facts import read_qemu_version
from architect.errors import ArchitectError
from architect.images import BaseStore, prepare_image
from architect.model.sizes import MIB
from architect.model.vm_spec import DEFAULT_MTU, MachineSpec
from architect.pvm.accelerator import detect_accelerator
from architect.runtime.namespaces import enter_namespace, run_in_thread, temporary_namespace
from bench.architect_mover import BenchFabric, running_fabric
from bench.guest_contact import GuestContact
from bench.guest_image import guest_image, guest_words
from bench.qemu_guest import QemuVm
from bench.qemu_mover import running_qemu
from bench.qemu_network import bridge, loopback_up
from bench.results import Cell, Document, Engine, Gap, Limits, Machine, Move, Run, ratios_of, rows_of, table

CELLS = (Cell(256, 0), Cell(256, 20), Cell(1024, 0), Cell(1024, 20))
QUICK_CELLS = (Cell(256, 20),)
RUNS = 3
WORK_S = 3.0
SETTLE_S = 1.5
LATE_S_MAX = 10.0
OUT = Path("out/bench/migration.json")


class Options(msgspec.Struct, frozen=True):
    """What to measure, and where to write it."""

    cells: tuple[Cell, ...] = CELLS
    runs: int = RUNS
    engines: tuple[Engine, ...] = tuple(Engine)
    out: Path = OUT
    limits: Limits = Limits()


class Mover(Protocol):
    """Who moves a VM: `architect_mover` and `qemu_mover`."""

    contact: GuestContact

    async def move(self, engine: Engine) -> Move:
        """Move it once. Raises: ArchitectError: that failed."""

    async def last_words(self) -> str:
        """What may explain a failure. Raises: ArchitectError: nobody answers."""

    async def revive(self) -> None:
        """Make sure that there is a VM. Raises: ArchitectError: there is none, and none can be made."""


class Bench(msgspec.Struct, frozen=True):
    """What every cell needs. `files` is the guest's kernel, `image` its image's reference."""

    options: Options
    scratch: Path
    cache: Path
    files: GuestFiles
    image: str
    accelerator: str
    fabric: BenchFabric


def main(words: list[str]) -> int:
    """Run the benchmark; the exit status. Ctrl-C and SIGTERM end it in order; what was measured until then is written."""
    options = parse(words)
    if os.geteuid() != 0:
        print("bench: needs root (network namespaces, userfaultfd, BPF); run it as root", file=sys.stderr)
        return 9
    scratch = Path(tempfile.mkdtemp(prefix="archbench", dir="/tmp"))
    try:
        with temporary_namespace(f"archbench-{os.getpid()}") as namespace:
            enter_namespace(namespace)  # for good: fabric, QEMUs and clients all live in there
            run_in_thread(loopback_up)
            asyncio.run(_measure(options, scratch))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("bench: interrupted", file=sys.stderr)
        return 130
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return 0


def parse(words: list[str]) -> Options:
    """The options of a command line."""
    parser = argparse.ArgumentParser(prog="bench migration", description=__doc__)
    parser.add_argument(
        "--cells", type=_cells, default=CELLS, help="MEMORY_MIB/DIRTY_MIB_S,… (default: 256/0,256/20,1024/0,1024/20)"
    )
    parser.add_argument("--runs", type=_count, default=RUNS, help="runs of each engine in each cell")
    parser.add_argument("--engines", type=_engines, default=tuple(Engine), help=",".join(Engine))
    limit_ms = Limits().downtime_limit_ms
    parser.add_argument("--downtime-limit", type=_count, default=limit_ms, metavar="MS", help="QEMU's; its own default is 300")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--quick", action="store_true", help="one small cell, one run: whether it works")
    found = parser.parse_args(words)
    limits = Limits(downtime_limit_ms=found.downtime_limit)
    cells, runs = (QUICK_CELLS, 1) if found.quick else (found.cells, found.runs)
    return Options(cells, runs, found.engines, found.out, limits)


async def _measure(options: Options, scratch: Path) -> None:
    measuring = asyncio.current_task()
    assert measuring is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, measuring.cancel)
    machine, cache = await _machine(), machine_cache()
    runs: list[Run] = []
    try:
        say(f"{machine.cores} cores, load {machine.load:.1f}, QEMU {machine.qemu}, {machine.accelerator}; starting the fabric")
        image = await asyncio.to_thread(guest_image, scratch / "image")
        files = await prepare_guest_files(cache)
        with bridge():
            async with running_fabric(scratch / "fabric") as fabric:
                bench = Bench(options, scratch, cache, files, image, machine.accelerator, fabric)
                for cell in options.cells:
                    await _measure_or_note(bench, cell, runs)
                    write(options, machine, runs)
    except BaseException:
        logs = scratch / "fabric" / "logs"
        if logs.exists():
            shutil.copytree(logs, options.out.parent / "migration-logs", dirs_exist_ok=True)
        raise
    finally:
        document = write(options, machine, runs)
        print("\n" + table(document.rows, document.ratios) + f"\nwritten to {options.out}", flush=True)


async def _measure_or_note(bench: Bench, cell: Cell, runs: list[Run]) -> None:
    """Measure a cell; if its VMs cannot be had (any more), that is the result of all runs that it lacks."""
    known = len(runs)
    try:
        await _measure_cell(bench, cell, runs)
    except ArchitectError as error:
        made = {(run.number, run.engine) for run in runs[known:]}
        for number, engine in turns(bench.options):
            if (number, engine) not in made:
                runs.append(Run(engine, cell, number, time.time(), os.getloadavg()[0], None, None, str(error)))
        say(f"  the rest of this cell was not measured: {error}")


async def _measure_cell(bench: Bench, cell: Cell, runs: list[Run]) -> None:
    """All runs of one cell, in turns; they are added to `runs` as they end."""
    say(f"cell {cell.memory_mib} MiB, {cell.dirty_mib_s} MiB/s written: starting its VMs")
    vm = await _qemu_vm(bench, cell)
    async with contextlib.AsyncExitStack() as stack:
        movers: dict[bool, Mover] = {}
        if Engine.ARCHITECT in bench.options.engines:
            movers[True] = await stack.enter_async_context(bench.fabric.vm(cell, bench.image))
        if set(bench.options.engines) - {Engine.ARCHITECT}:
            movers[False] = await stack.enter_async_context(running_qemu(vm, bench.options.limits))
        for number, engine in turns(bench.options):
            measured = movers[engine is Engine.ARCHITECT]
            others = [mover for mover in movers.values() if mover is not measured]
            run = await _run(cell, engine, number, measured, others)
            runs.append(run)
            _tell(run)
            await measured.revive()


def turns(options: Options) -> Iterator[tuple[int, Engine]]:
    """Every engine once, then every engine again, …"""
    for number in range(1, options.runs + 1):
        for engine in options.engines:
            yield number, engine


async def _run(cell: Cell, engine: Engine, number: int, measured: Mover, others: list[Mover]) -> Run:
    """One move of a guest that works while the others rest; its failure is its result."""
    run = Run(engine, cell, number, time.time(), os.getloadavg()[0], None, None)
    try:
        for other in others:
            await other.contact.rest()
        await measured.contact.work()
        written_mib, since_s = await measured.contact.written_mib(), time.monotonic()
        await asyncio.sleep(WORK_S)
        seen = (await measured.contact.written_mib() - written_mib) / (time.monotonic() - since_s)
        run = msgspec.structs.replace(run, dirty_mib_s_seen=round(seen, 1))
        await measured.contact.reset_gap()
        move = await measured.move(engine)
        await asyncio.sleep(SETTLE_S)
        gap = await _settled_gap(measured.contact)
        await measured.contact.ask(b"?")
        return msgspec.structs.replace(run, move=move, gap=gap)
    except ArchitectError as error:
        with contextlib.suppress(ArchitectError):
            run = msgspec.structs.replace(run, gap=await measured.contact.gap())
        words = ""
        with contextlib.suppress(ArchitectError):
            words = await measured.last_words()
        return msgspec.structs.replace(run, error=f"{error} ({words})")


async def _settled_gap(contact: GuestContact) -> Gap:
    """The gap once no answer comes late any more: a busy guest works off first what has waited for it."""
    gap = await contact.gap()
    end_s = time.monotonic() + LATE_S_MAX
    while gap.lost and time.monotonic() < end_s:
        await asyncio.sleep(1.0)
        before, gap = gap, await contact.gap()
        if gap.lost >= before.lost:
            break
    return gap


async def _qemu_vm(bench: Bench, cell: Cell) -> QemuVm:
    store = BaseStore(bench.scratch / "images")
    image = await prepare_image(bench.image, store, guest_words(cell), (), say)
    base = store.get(image.base.digest)
    assert base is not None, "it was just made"
    files = bench.files
    spec = MachineSpec(
        cpus=1,
        memory_bytes=cell.memory_mib * MIB,
        mtu=DEFAULT_MTU,
        kernel_sha256=files.kernel_sha256,
        initramfs_sha256=files.initramfs_sha256,
        accelerator=bench.accelerator,
    )
    folder = bench.scratch / f"qemu-{cell.memory_mib}-{cell.dirty_mib_s}"
    return QemuVm(folder, spec, files.boot, base, image.process)


async def _machine() -> Machine:
    accelerator = await detect_accelerator(machine_cache())
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = len(os.sched_getaffinity(0))
    return Machine(cores, memory_bytes, os.uname().release, await read_qemu_version(), accelerator.kind, os.getloadavg()[0])


def write(options: Options, machine: Machine, runs: list[Run]) -> Document:
    """Write what there is, whole or not at all; what was written."""
    rows = rows_of(runs)
    document = Document(machine, options.limits, rows, ratios_of(rows), tuple(runs))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    temporary = options.out.with_suffix(".new")
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2))
    temporary.rename(options.out)
    return document


def say(text: str) -> None:
    """A line of what happens, with the time."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def _tell(run: Run) -> None:
    move, gap = run.move, run.gap
    outcome = run.error
    if move is not None and gap is not None:
        seen = f"gap {gap.gap_ms:.1f} ms, {gap.lost} lost"
        outcome = f"{move.total_s:.2f} s, pause {move.downtime_ms:.1f} ms, {seen}, {move.bytes >> 20} MiB"
    say(f"  run {run.number} {run.engine:<14} {outcome}  (load {run.load:.1f}, wrote {run.dirty_mib_s_seen} MiB/s)")


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def _cells(text: str) -> tuple[Cell, ...]:
    try:
        cells = tuple(Cell(*map(int, part.split("/", 1))) for part in text.split(","))
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not MEMORY_MIB/DIRTY_MIB_S,…") from error
    if any(cell.memory_mib < 128 or cell.dirty_mib_s < 0 for cell in cells):
        raise argparse.ArgumentTypeError("a VM has at least 128 MiB and writes nothing negative")
    return cells


def _engines(text: str) -> tuple[Engine, ...]:
    try:
        return tuple(dict.fromkeys(Engine(part) for part in text.split(",")))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: engines are {', '.join(Engine)}") from error
