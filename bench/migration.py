"""`make bench NAME=migration`: the same VM moved by us and by QEMU's own migration, in turns, so that noise hits all alike.

Both VMs have the same kernel, init, image and virtual hardware. The one that is not measured halts its writing. Each cell starts
new VMs; each run of an engine begins where the one before it has left its VM. See docs/operations/benchmarks.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
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
from architect.runtime.cancellation import check_cancelled
from bench.architect_mover import BenchFabric, running_fabric
from bench.comparison import is_shared
from bench.document_file import Measured, commit
from bench.guest_contact import GuestContact, written
from bench.guest_image import guest_image, guest_words
from bench.migration_options import Options, parse, turns
from bench.private_namespace import run_alone
from bench.progress import Progress
from bench.qemu_guest import QemuVm
from bench.qemu_mover import running_qemu
from bench.qemu_network import bridge
from bench.result_table import aims_text, table
from bench.results import Cell, Engine, EngineSetup, Gap, Machine, Move, Run
from demo.console import say

WORK_S = 3.0
SETTLE_S = 1.5
LATE_S_MAX = 10.0


class Mover(Protocol):
    """Who moves a VM: `architect_mover` and `qemu_mover`."""

    contact: GuestContact
    setups: dict[Engine, EngineSetup]

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
    return run_alone(lambda scratch: _measure(options, scratch))


async def _measure(options: Options, scratch: Path) -> None:
    machine, cache = await _machine(), machine_cache()
    measured = Measured(options, machine)
    cells = measured.cells_to_measure()
    progress = Progress(cells, options.runs * len(options.engines), time.monotonic())
    try:
        say(f"{machine.cores} cores, load {machine.load:.1f}, QEMU {machine.qemu}, {machine.accelerator}; starting the fabric")
        if kept := [cell for cell in options.cells if cell not in cells]:
            say(f"measured before, and kept: {', '.join(map(str, kept))}")
        image = await asyncio.to_thread(guest_image, scratch / "image")
        files = await prepare_guest_files(cache)
        with bridge():
            async with running_fabric(scratch / "fabric") as fabric:
                bench = Bench(options, scratch, cache, files, image, machine.accelerator, fabric)
                for cell in cells:
                    await _measure_or_note(bench, cell, measured, progress)
                    measured.write()
    except BaseException:
        logs = scratch / "fabric" / "logs"
        if logs.exists():
            shutil.copytree(logs, options.out.parent / "migration-logs", dirs_exist_ok=True)
        raise
    finally:
        document = measured.write()
        words = table(document.rows, document.ratios), aims_text(document.aims), f"written to {options.out}"
        print("\n" + "\n".join(words), flush=True)


async def _measure_or_note(bench: Bench, cell: Cell, measured: Measured, progress: Progress) -> None:
    """Measure a cell; if its VMs cannot be had (any more), that is the result of all runs that it lacks."""
    known = len(measured.runs)
    try:
        await _measure_cell(bench, cell, measured, progress)
    except ArchitectError as error:
        check_cancelled()
        made = {(run.number, run.engine) for run in measured.runs[known:]}
        for number, engine in turns(bench.options):
            if (number, engine) not in made:
                measured.runs.append(Run(engine, cell, number, time.time(), os.getloadavg()[0], None, None, str(error)))
                progress.run_done()
        say(f"  the rest of this cell was not measured: {error}")


async def _measure_cell(bench: Bench, cell: Cell, measured: Measured, progress: Progress) -> None:
    """All runs of one cell, in turns; they are added to `measured` as they end."""
    disk = f", {cell.disk_mib_s} MiB/s to its disk" if cell.disk_mib_s else ""
    say(f"cell {cell}: {cell.memory_mib} MiB, {cell.dirty_mib_s} MiB/s written{disk}: starting its VMs; {_progress(progress)}")
    vm = await _qemu_vm(bench, cell)
    async with contextlib.AsyncExitStack() as stack:
        movers: dict[bool, Mover] = {}
        if Engine.ARCHITECT in bench.options.engines:
            movers[True] = await stack.enter_async_context(bench.fabric.vm(cell, bench.image, bench.options.limits))
            await movers[True].contact.rest()
        if set(bench.options.engines) - {Engine.ARCHITECT}:
            movers[False] = await stack.enter_async_context(running_qemu(vm, bench.options.limits))
        for number, engine in turns(bench.options):
            mover = movers[engine is Engine.ARCHITECT]
            others = [other for other in movers.values() if other is not mover]
            run = await _run(cell, engine, number, mover, others)
            measured.runs.append(run)
            measured.setups |= mover.setups
            progress.run_done()
            _tell(run, progress)
            await mover.revive()


def _progress(progress: Progress) -> str:
    return progress.text(time.monotonic())


async def _run(cell: Cell, engine: Engine, number: int, mover: Mover, others: list[Mover]) -> Run:
    """One move of a guest that works while the others rest; its failure is its result."""
    run = Run(engine, cell, number, time.time(), os.getloadavg()[0], None, None)
    contact = mover.contact
    try:
        for other in others:
            await other.contact.rest()
        await contact.work()
        begun = await contact.next_report()
        await asyncio.sleep(WORK_S)
        worked = await contact.next_report()
        run = msgspec.structs.replace(run, before=written(begun, worked))
        await contact.reset_gap()
        move = await mover.move(engine)
        run = msgspec.structs.replace(run, during=written(worked, await contact.next_report()))
        await asyncio.sleep(SETTLE_S)
        gap = await _settled_gap(contact)
        await contact.ask(b"?")
        return msgspec.structs.replace(run, move=move, gap=gap)
    except ArchitectError as error:
        with contextlib.suppress(ArchitectError):
            run = msgspec.structs.replace(run, gap=await contact.gap())
        words = ""
        with contextlib.suppress(ArchitectError):
            words = await mover.last_words()
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
    folder = bench.scratch / f"qemu-{cell.memory_mib}-{cell.dirty_mib_s}-{cell.disk_mib_s}"
    return QemuVm(folder, spec, files.boot, base, image.process, is_shared(cell, Engine.PRECOPY))


async def _machine() -> Machine:
    accelerator = await detect_accelerator(machine_cache())
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = len(os.sched_getaffinity(0))
    qemu, code = await read_qemu_version(), await asyncio.to_thread(commit)
    return Machine(cores, memory_bytes, os.uname().release, qemu, accelerator.kind, os.getloadavg()[0], code)


def _tell(run: Run, progress: Progress) -> None:
    move, gap = run.move, run.gap
    outcome = run.error
    if move is not None and gap is not None:
        seen = f"gap {gap.gap_ms:.1f} ms, {gap.lost} lost"
        outcome = f"{move.total_s:.2f} s, pause {move.downtime_ms:.1f} ms, {seen}, {move.bytes >> 20} MiB"
    wrote = "" if run.before is None else f", wrote {run.before.memory_mib_s} MiB/s"
    disk = "" if run.before is None or not run.cell.disk_mib_s else f" and {run.before.disk_mib_s} to disk"
    say(f"  run {run.number} {run.engine:<21} {outcome}  (load {run.load:.1f}{wrote}{disk}); {_progress(progress)}")
