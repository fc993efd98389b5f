"""The ports of a simulated handover's source, and those that both sides have alike. Every call may be cut short by a fault."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from architect.errors import HostError, PeerError
from architect.migration import MemoryCut, MemoryProgress, MirrorProgress, RoundStats
from architect.model.ids import MigrationId, VmId
from architect.testing.sim_machine import QemuStatus, SimMirror, SimQemu
from architect.testing.sim_memory import SimMemory
from architect.testing.sim_world import gone

if TYPE_CHECKING:
    from architect.testing.sim_host import SimHost

ResultT = TypeVar("ResultT")


class SimPart:
    """What every simulated port has: its host, its VM, and numbered calls."""

    def __init__(self, host: SimHost, vm: VmId) -> None:
        self.host = host
        self.vm = vm

    async def call(self, name: str, effect: Callable[[], ResultT]) -> ResultT:
        """A call whose effect is one instant."""

        async def perform() -> ResultT:
            return effect()

        return await self.host.world.call(name, perform, place=self.host.name, vm=self.vm)

    async def long_call(self, name: str, effect: Callable[[], Awaitable[ResultT]], *, stops: bool = False) -> ResultT:
        """A call that takes its time in the called party."""
        return await self.host.world.call(name, effect, place=self.host.name, stops=stops, vm=self.vm)

    def qemu(self) -> SimQemu:
        """The VM's QEMU here."""
        qemu = self.host.qemus.get(self.vm)
        if qemu is None:
            raise gone(f"vm {self.vm}")
        qemu.check()
        return qemu

    def memory(self) -> SimMemory:
        """The VM's memory process here."""
        memory = self.host.memories.get(self.vm)
        if memory is None:
            raise gone(f"memory process of {self.vm}")
        memory.check()
        return memory


class SimLog(SimPart):
    """The VM's output as a file of the host."""

    async def size(self) -> int:
        """As the port says."""
        return len(self.host.logs.get(self.vm, b""))

    async def read(self, offset: int, count: int) -> tuple[tuple[int, bytes], ...]:
        """As the port says."""
        return ((offset, self.host.logs.get(self.vm, b"")[offset : offset + count]),)

    async def append(self, offset: int, data: bytes) -> None:
        """As the port says."""

        def write() -> None:
            log = self.host.logs.get(self.vm, b"")
            if offset > len(log):
                raise PeerError(f"vm {self.vm}", "a gap in its output", "report this")
            self.host.logs[self.vm] = log[:offset] + data + log[offset + len(data) :]

        await self.call(f"log.append {offset}", write)


class SimBases:
    """Base disks: only their length is simulated."""

    def __init__(self, host: SimHost) -> None:
        self._host = host

    async def present_bytes(self, digest: str, size_bytes: int) -> int:
        """As the port says."""
        return self._host.bases.get(digest, 0)

    async def read(self, digest: str, offset: int, count: int) -> bytes:
        """As the port says."""
        return bytes(min(count, self._host.bases.get(digest, 0) - offset))

    async def write(self, digest: str, size_bytes: int, offset: int, data: bytes) -> None:
        """As the port says."""
        have = self._host.bases.get(digest, 0)
        if offset > have:
            raise PeerError(f"base disk {digest}", "a gap", "send it in order")

        async def perform() -> None:
            self._host.bases[digest] = max(self._host.bases.get(digest, 0), offset + len(data))

        await self._host.world.call(f"base.write {offset}", perform)


class SimHooks(SimPart):
    """What a machine has at both ends."""

    async def run_hook(self, name: str) -> None:
        """As the port says."""
        await self.call(f"hook {name}", lambda: self.qemu().check())

    async def sync_clock(self) -> None:
        """As the port says."""
        await self.call("sync-clock", lambda: self.qemu().check())

    async def what_ended(self) -> str:
        """As the port says."""
        qemu = self.host.qemus.get(self.vm)
        return f"QEMU of vm {self.vm} on host {self.host.name} ended" if qemu is not None and qemu.status is QemuStatus.DEAD else ""

    async def destroy(self) -> None:
        """As the port says."""
        await self.call("machine.destroy", lambda: self.host.destroy(self.vm))


class SimSourceMachine(SimHooks):
    """A `SourceMachinePort`."""

    async def start_mirror(self, path: str) -> None:
        """As the port says."""

        def start() -> None:
            qemu, session = self.qemu(), self.memory().outgoing
            if session is None or session.is_dead or path != f"{session.migration}/mirror":
                raise HostError(f"vm {self.vm}", "no such tunnel", "try again")
            target = session.target.host.qemus.get(self.vm)
            if target is None:
                raise gone("the target's QEMU")
            qemu.mirror = SimMirror(qemu, target)

        await self.call("mirror.start", start)

    async def mirror_progress(self) -> MirrorProgress:
        """As the port says."""

        def progress() -> MirrorProgress:
            mirror = self.qemu().mirror
            if mirror is None:
                raise HostError(f"vm {self.vm}", "no mirror runs", "start it")
            return mirror.progress()

        return await self.call("mirror.progress", progress)

    async def finish_mirror(self) -> None:
        """As the port says."""

        async def finish() -> None:
            qemu = self.qemu()
            if qemu.mirror is None:
                raise HostError(f"vm {self.vm}", "no mirror runs", "start it")
            await qemu.mirror.finish()
            qemu.mirror.stop()
            qemu.mirror = None

        await self.long_call("mirror.finish", finish)

    async def cancel_mirror(self) -> None:
        """As the port says."""

        def cancel() -> None:
            qemu = self.host.qemus.get(self.vm)
            if qemu is not None and qemu.mirror is not None:
                qemu.mirror.stop()
                qemu.mirror = None

        await self.call("mirror.cancel", cancel)

    async def freeze_disk(self) -> str:
        """As the port says."""

        def freeze() -> str:
            self.qemu().disk_is_frozen = True
            return f"{self.host.name}/overlay"

        return await self.call("disk.freeze", freeze)

    async def pause(self) -> float:
        """As the port says."""
        return await self.call("machine.pause", lambda: self.qemu().pause())

    async def resume(self) -> None:
        """As the port says."""
        await self.call("machine.resume", lambda: self.qemu().resume())

    async def save_device_state(self) -> bytes:
        """As the port says."""
        return await self.call("machine.save", lambda: self.qemu().save())


class SimSourceMemory(SimPart):
    """A `SourceMemoryPort`."""

    async def open_source(self, session: MigrationId, address: str, port: int, server_name: str, streams: int) -> None:
        """As the port says."""
        peer = self.host.neighbour(address)

        async def connect() -> None:
            await self.memory().open_source(session, peer.memories.get(self.vm))

        await self.long_call("memory.open-source", connect)

    async def set_bandwidth(self, bytes_per_s: int) -> None:
        """As the port says."""

        def change() -> None:
            self.memory().bandwidth_bytes_s = bytes_per_s

        await self.call("memory.set-bandwidth", change)

    async def bulk(self) -> RoundStats:
        """As the port says."""
        return await self.long_call("memory.bulk", lambda: self.memory().round(), stops=True)

    async def round(self) -> RoundStats:
        """As the port says."""
        return await self.long_call("memory.round", lambda: self.memory().round(), stops=True)

    async def stop_round(self) -> None:
        """As the port says."""

        def stop() -> None:
            self.memory().is_stopping = True

        await self.call("memory.stop-round", stop)

    async def progress(self) -> MemoryProgress:
        """As the port says."""
        return await self.call("memory.progress", lambda: self.memory().progress())

    async def cut(self, postcopy: bool) -> MemoryCut:
        """As the port says."""
        return await self.long_call("memory.cut", lambda: self.memory().cut(postcopy))

    async def full_hash(self) -> str:
        """As the port says."""

        async def compute() -> str:
            await asyncio.sleep(0.5)
            return self.memory().root()

        return await self.long_call("memory.full-hash", compute)

    async def start_serving(self) -> None:
        """As the port says. It pushes since the cut."""
        await self.call("memory.start-serving", lambda: self.memory().check())

    async def serve_until_done(self) -> None:
        """As the port says."""
        await self.long_call("memory.serve", lambda: self.memory().serve_until_done(), stops=True)

    async def abort_source(self) -> None:
        """As the port says."""

        def abort() -> None:
            if (memory := self.host.memories.get(self.vm)) is not None:
                memory.abort()
            if (qemu := self.host.qemus.get(self.vm)) is not None:
                qemu.disk_is_frozen = False

        await self.call("memory.abort-source", abort)

    async def is_serving(self) -> bool:
        """As the port says."""
        return await self.call("memory.is-serving", lambda: self.memory().is_serving())

    async def tunnel_listen(self, name: str) -> str:
        """As the port says."""

        def listen() -> str:
            session = self.memory().outgoing
            if session is None:
                raise HostError(f"vm {self.vm}", "no session", "open one")
            return f"{session.migration}/{name}"

        return await self.call(f"tunnel.listen {name}", listen)

    async def tunnel_serve(self, name: str, path: str) -> None:
        """As the port says."""
        await self.call(f"tunnel.serve {name}", lambda: self.memory().check())


class SimSourceFlows(SimPart):
    """A `SourceFlowPort`."""

    async def set_forward(self, target_address: str) -> None:
        """As the port says."""
        await self.call("flows.forward", lambda: self.host.flows.set_forward(self.vm, target_address))

    async def set_local(self) -> None:
        """As the port says."""
        await self.call("flows.local", lambda: self.host.flows.set_local(self.vm))

    async def wait_drained(self, timeout_s: float) -> None:
        """As the port says."""
        await self.long_call("flows.drain", lambda: self.host.flows.wait_drained(self.vm, timeout_s), stops=True)

    async def relay_rest(self, target_address: str) -> None:
        """As the port says."""
        await self.long_call("flows.relay-rest", lambda: self.host.flows.relay(self.vm, target_address))

    async def wait_quiet(self, timeout_s: float) -> None:
        """As the port says."""
        await self.long_call("flows.quiet", lambda: self.host.flows.wait_quiet(timeout_s), stops=True)
