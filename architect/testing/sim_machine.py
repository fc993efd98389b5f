"""A VM in a simulation: the truth that its users see, and the copies of it that QEMUs on hosts hold.

The guest keeps one counter; every page or block that it writes gets the counter's next value. The truth follows the running guest.
Whenever a copy runs, whatever it reads must be the truth: a stale page, a lost write, a state from another moment, or two copies
that run at once are found at the very next tick.
"""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

from architect.errors import ConflictError, HostError, LostError
from architect.migration.handover_plan import MirrorProgress
from architect.model.ids import VmId
from architect.model.vm_spec import VmSpec
from architect.testing.sim_events import EventKind
from architect.testing.sim_world import World, gone, poll

if TYPE_CHECKING:
    from architect.testing.sim_host import SimHost
    from architect.testing.sim_memory import SimMemory

BLOCK_BYTES = 65536
BATCH_BLOCKS = 4
LIVELY_S = 0.3


class GuestShape(msgspec.Struct, frozen=True):
    """How large a guest is and how much it writes: up to `writes_per_tick` cells of memory every `tick_s`."""

    cells: int
    blocks: int
    tick_s: float
    writes_per_tick: int
    cell_bytes: int = 4096


class SimVm:
    """The truth about one VM."""

    def __init__(self, world: World, spec: VmSpec, shape: GuestShape) -> None:
        self.world = world
        self.spec = spec
        self.id: VmId = spec.id
        self.cell_bytes = shape.cell_bytes
        self.page_count = spec.machine.memory_bytes // shape.cell_bytes
        self.counter = 0
        self.ram = [0] * self.page_count
        self.disk = [0] * shape.blocks
        self.log = b""
        self.tick_s = shape.tick_s
        self.writes_per_tick = shape.writes_per_tick
        self.copies: list[SimQemu] = []
        self.is_busy = True
        world.vms[spec.id] = self

    def running(self) -> list[SimQemu]:
        """The copies that run."""
        return [copy for copy in self.copies if copy.status is QemuStatus.RUNNING]


class QemuStatus(StrEnum):
    """What a copy does."""

    INCOMING = "incoming"
    RUNNING = "running"
    PAUSED = "paused"
    DEAD = "dead"


class SimQemu:
    """One copy of a VM on one host."""

    def __init__(self, vm: SimVm, host: SimHost, memory: SimMemory, status: QemuStatus) -> None:
        self.vm = vm
        self.world = vm.world
        self.host = host
        self.memory = memory
        self.status = status
        self.counter = vm.counter if status is not QemuStatus.INCOMING else -1
        self.disk = list(vm.disk) if status is not QemuStatus.INCOMING else [0] * len(vm.disk)
        self.disk_source: SimQemu | None = None
        self.disk_missing: set[int] = set()
        self.exports = status is QemuStatus.INCOMING
        self.disk_is_frozen = False
        self.mirror: SimMirror | None = None
        self._run_number = 0
        self._lively_until_s = 0.0
        self._awake = asyncio.Event()
        vm.copies.append(self)

    def check(self) -> None:
        """Raises HostError if the process is dead."""
        if self.status is QemuStatus.DEAD:
            raise gone(f"vm {self.vm.id}")

    def pause(self) -> float:
        """QMP stop."""
        self.check()
        if self.status is QemuStatus.RUNNING:
            self.status = QemuStatus.PAUSED
            self.world.say(f"qemu {self.host.name}", "STOP", self.vm.id)
            self._note(EventKind.PAUSE)
            self._awake.set()
        return self.host.clock.wall_s()

    def resume(self) -> float:
        """QMP cont."""
        self.check()
        if self.status is not QemuStatus.RUNNING:
            if self.status is QemuStatus.INCOMING and self.counter < 0:
                raise HostError(f"vm {self.vm.id}", "no state was loaded", "load it first")
            self.status = QemuStatus.RUNNING
            self.world.say(f"qemu {self.host.name}", "RESUME", self.vm.id)
            self._note(EventKind.RESUME)
            self._judge_start()
            self._run_number += 1
            self._lively_until_s = self.world.loop.now_s + LIVELY_S
            self.world.spawn(self._run_guest(self._run_number))
        return self.host.clock.wall_s()

    def save(self) -> bytes:
        """Device state."""
        self.check()
        if self.status is not QemuStatus.PAUSED:
            raise ConflictError(f"vm {self.vm.id}", "runs", "stop it first")
        return f"counter {self.counter}".encode()

    def load(self, state: bytes) -> None:
        """Load device state into a halted machine."""
        self.check()
        self.counter = int(state.split()[1])

    def die(self, kind: EventKind = EventKind.CRASH) -> None:
        """The process ends: by a fault, or because its agent ended it."""
        if self.status is not QemuStatus.DEAD:
            self.world.say(f"qemu {self.host.name}", "process ended", self.vm.id)
            self._note(kind)
            self.status = QemuStatus.DEAD
            self._awake.set()
            if self.mirror is not None:
                self.mirror.stop()
                self.mirror = None

    def _note(self, kind: EventKind) -> None:
        self.world.note(kind, f"qemu {self.host.name}", self.vm.id, host=self.host.name)

    def attach(self, source: SimQemu) -> None:
        """A fresh overlay over another host's stopped disk."""
        self.check()
        self.disk_source = source
        self.disk_missing = set(range(len(self.disk)))
        self.world.spawn(self._stream())

    async def wait_disk_present(self) -> None:
        """Until the disk is whole."""
        await poll(lambda: not self.disk_missing or self.status is QemuStatus.DEAD or not self._has_disk_source())
        self.check()
        if self.disk_missing:
            raise LostError(f"vm {self.vm.id}", "its disk's source is gone", "restore it")

    def _has_disk_source(self) -> bool:
        source = self.disk_source
        return source is not None and source.disk_is_frozen

    async def _stream(self) -> None:
        while self.disk_missing and self.status is not QemuStatus.DEAD:
            source = self.disk_source
            assert source is not None
            blocks = sorted(self.disk_missing)[:BATCH_BLOCKS]
            await self.host.network.transfer(source.host.name, self.host.name, len(blocks) * BLOCK_BYTES)
            if not source.disk_is_frozen:
                return
            for block in blocks:
                self.disk[block] = source.disk[block]
                self.disk_missing.discard(block)

    def _judge_start(self) -> None:
        judge, vm = self.world.judge, self.vm
        running = vm.running()
        if len(running) > 1:
            judge.blame(f"two copies of {vm.id} run: {', '.join(copy.host.name for copy in running)}")
        if self.counter != vm.counter:
            judge.blame(f"{vm.id} went on at {self.host.name} from moment {self.counter}, its users saw {vm.counter}")
        for block in range(len(self.disk)):
            if block not in self.disk_missing and self.disk[block] != vm.disk[block]:
                judge.blame(f"{vm.id} at {self.host.name}: block {block} lost a write")
                break
        for page in range(vm.page_count):
            if page in self.memory.valid and self.memory.ram[page] != vm.ram[page]:
                judge.blame(f"{vm.id} at {self.host.name}: page {page} lost a write")
                break

    def wake(self) -> None:
        """Somebody watches from now on what the guest writes."""
        self._awake.set()

    def _is_watched(self) -> bool:
        """Whether what the guest writes can make a difference to anybody. If not, it might as well write nothing."""
        is_lively = self.world.loop.now_s < self._lively_until_s
        return self.vm.is_busy and (is_lively or self.mirror is not None or bool(self.disk_missing) or self.memory.is_watched())

    async def _run_guest(self, run_number: int) -> None:
        vm, random = self.vm, self.world.random
        while True:
            if self._is_watched():
                await asyncio.sleep(vm.tick_s)
            else:
                self.host.flows.take(vm.id)
                self._awake.clear()
                await self._awake.wait()
            await self.world.wait_thawed(self.host.name)
            if not self._runs() or run_number != self._run_number:
                return
            if not self._is_watched():
                continue
            for _ in range(random.randrange(vm.writes_per_tick + 1)):
                if not await self._write_page(int(random.random() ** 3 * vm.page_count)):
                    return
            if random.random() < 0.3 and not await self._write_block(random.randrange(len(vm.disk))):
                return
            if random.random() < 0.2:
                line = f"{vm.counter}\n".encode()
                self.host.logs[vm.id] = self.host.logs.get(vm.id, b"") + line
                vm.log += line
            self.host.flows.take(vm.id)

    async def _write_page(self, page: int) -> bool:
        """A read, then a write; false if the guest does not run any more."""
        if not await self.memory.present(page, self) or not self._runs():
            return False
        vm = self.vm
        if self.memory.ram[page] != vm.ram[page]:
            self.world.judge.blame(f"{vm.id} at {self.host.name} read page {page}: {self.memory.ram[page]}, not {vm.ram[page]}")
        self._count()
        vm.ram[page] = self.memory.ram[page] = vm.counter
        self.memory.written(page)
        return True

    async def _write_block(self, block: int) -> bool:
        await poll(lambda: block not in self.disk_missing or not self._runs())
        if not self._runs():
            return False
        vm = self.vm
        if self.disk[block] != vm.disk[block]:
            self.world.judge.blame(f"{vm.id} at {self.host.name} read block {block}: {self.disk[block]}, not {vm.disk[block]}")
        self._count()
        vm.disk[block] = self.disk[block] = vm.counter
        if self.mirror is not None:
            self.mirror.written(block)
        return True

    def _runs(self) -> bool:
        return self.status is QemuStatus.RUNNING

    def _count(self) -> None:
        vm = self.vm
        if self.counter != vm.counter:
            self.world.judge.blame(f"{vm.id} at {self.host.name} is at moment {self.counter}, its users saw {vm.counter}")
        vm.counter += 1
        self.counter = vm.counter


class SimMirror:
    """A disk's mirror job inside the source's QEMU."""

    def __init__(self, source: SimQemu, target: SimQemu) -> None:
        self.source = source
        self.target = target
        self.pending = set(range(len(source.disk)))
        self.is_ready = False
        self.is_broken = False
        self._written = asyncio.Event()
        self._task = source.world.spawn(self._run())
        source.wake()

    def progress(self) -> MirrorProgress:
        """How far it is."""
        if self.is_broken:
            raise HostError(f"vm {self.source.vm.id}", "its disk's mirror has failed", "try the move again")
        total = len(self.source.disk) * BLOCK_BYTES
        return MirrorProgress(self.is_ready, total - len(self.pending) * BLOCK_BYTES, total)

    def written(self, block: int) -> None:
        """The guest wrote a block."""
        self.pending.add(block)
        self._written.set()

    async def finish(self) -> None:
        """Until nothing is pending."""
        await poll(lambda: not self.pending or self.is_broken)
        self.progress()

    def stop(self) -> None:
        """End the job."""
        self._task.cancel()

    async def _run(self) -> None:
        network = self.source.host.network
        while True:
            if not self.pending:
                self.is_ready = True
                self._written.clear()
                await self._written.wait()
                continue
            blocks = sorted(self.pending)[:BATCH_BLOCKS]
            values = [self.source.disk[block] for block in blocks]
            await network.transfer(self.source.host.name, self.target.host.name, len(blocks) * BLOCK_BYTES)
            if self.target.status is QemuStatus.DEAD or not self.target.exports:
                self.is_broken = True
                return
            for block, value in zip(blocks, values, strict=True):
                self.target.disk[block] = value
                if self.source.disk[block] == value:
                    self.pending.discard(block)
