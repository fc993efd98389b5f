"""The ports of a simulated handover's target."""

from __future__ import annotations

import asyncio

from architect.errors import HostError
from architect.migration import MemoryListener
from architect.migration.target_ports import NeverRanError
from architect.model.handover_span import Span
from architect.model.ids import MigrationId
from architect.model.vm_spec import VmSpec
from architect.testing.sim_machine import QemuStatus, SimQemu
from architect.testing.sim_memory import SimMemory
from architect.testing.sim_ports import SimHooks, SimPart
from architect.testing.sim_world import current_process


class SimTargetMachine(SimHooks):
    """A `TargetMachinePort`."""

    _is_ours = False

    async def start_incoming(self, spec: VmSpec) -> str:
        """As the port says."""

        async def start() -> str:
            await asyncio.sleep(self.host.world.delay_s(0.1, 0.4, self.host.name))
            if self.vm not in self.host.arriving:
                raise HostError(f"vm {self.vm}", "its reservation is gone", "try again")
            vm = self.host.world.vms[self.vm]
            self.host.give_up_parts(self.vm)  # an earlier start whose agent died before it knew of it
            self.host.flows.add(self.vm)
            memory = self.host.memories[self.vm] = SimMemory(vm, self.host, is_full=False)
            self.host.qemus[self.vm] = SimQemu(vm, self.host, memory, QemuStatus.INCOMING)
            self.host.halted.add(self.vm)
            return f"{self.host.name}/export"

        return await self.long_call("machine.start-incoming", start)

    async def stop_export(self) -> None:
        """As the port says."""

        def stop() -> None:
            self.qemu().exports = False

        await self.call("disk.stop-export", stop)

    async def attach_postcopy_disk(self, path: str) -> None:
        """As the port says."""

        def attach() -> None:
            session = self.memory().incoming
            if session is None or session.source is None:
                raise HostError(f"vm {self.vm}", "no session", "try again")
            source = session.source.host.qemus.get(self.vm)
            if source is None or not source.disk_is_frozen:
                raise HostError(f"vm {self.vm}", "the source does not serve its disk", "try again")
            self.qemu().attach(source)

        await self.call("disk.attach", attach)

    async def load_device_state(self, state: bytes) -> None:
        """As the port says."""
        await self.call("machine.load", lambda: self.qemu().load(state))

    async def is_alive(self) -> bool:
        """As the port says."""
        qemu = self.host.qemus.get(self.vm)
        return qemu is not None and qemu.status is not QemuStatus.DEAD

    async def resume(self) -> float:
        """As the port says."""
        current_process().check_alive()
        qemu = self.host.qemus.get(self.vm)
        if self.vm in self.host.halted and (qemu is None or qemu.status is QemuStatus.DEAD):
            raise NeverRanError(f"vm {self.vm}", "its QEMU ended before it ran", "move it again")
        self.host.halted.discard(self.vm)
        self._is_ours = True
        return await self.call("machine.resume", lambda: self.qemu().resume())

    async def wait_disk_present(self) -> None:
        """As the port says."""
        await self.long_call("disk.present", lambda: self.qemu().wait_disk_present(), stops=True)

    async def destroy(self) -> None:
        """As the port says."""

        # Of a VM that was ours, and is lost, record and output stay for its owner to see.
        end = self.host.give_up_parts if self._is_ours else self.host.destroy
        await self.call("machine.destroy", lambda: end(self.vm))


class SimTargetMemory(SimPart):
    """A `TargetMemoryPort`."""

    async def open_target(self, session: MigrationId) -> MemoryListener:
        """As the port says."""

        def open_session() -> MemoryListener:
            self.memory().open_target(session)
            return MemoryListener(self.host.facts.address, 9, "memory")

        return await self.call("memory.open-target", open_session)

    async def apply_cut(self, root: str, postcopy: bool) -> tuple[Span, ...]:
        """As the port says."""
        await self.long_call("memory.apply-cut", lambda: self.memory().apply_cut(root, postcopy))
        return ()

    async def full_hash(self) -> str:
        """As the port says."""

        async def compute() -> str:
            await asyncio.sleep(0.5)
            return self.memory().root()

        return await self.long_call("memory.full-hash", compute)

    async def wait_all_present(self) -> None:
        """As the port says."""
        await self.long_call("memory.present", lambda: self.memory().wait_all_present(), stops=True)

    async def silent_s(self) -> float:
        """As the port says."""
        return self.memory().silent_s()

    async def abort_target(self) -> None:
        """As the port says."""

        def abort() -> None:
            if (memory := self.host.memories.get(self.vm)) is not None:
                memory.abort()

        await self.call("memory.abort-target", abort)

    async def tunnel_listen(self, name: str) -> str:
        """As the port says."""
        return await self.call(f"tunnel.listen {name}", lambda: f"{self.memory().host.name}/{name}")

    async def tunnel_connect(self, name: str, path: str) -> None:
        """As the port says."""
        await self.call(f"tunnel.connect {name}", lambda: self.memory().check())


class SimTargetFlows(SimPart):
    """A `TargetFlowPort`."""

    async def hold(self) -> None:
        """As the port says."""
        await self.call("flows.hold", lambda: self.host.flows.set_local(self.vm))

    async def set_local(self) -> None:
        """As the port says."""
        await self.call("flows.local", lambda: self.host.flows.set_local(self.vm))

    async def wait_first_packet(self) -> float:
        """As the port says. The simulated guest sends at once."""
        return self.host.world.loop.now_s

    async def relay(self, source_address: str) -> None:
        """As the port says."""
        await self.long_call("flows.relay", lambda: self.host.flows.relay(self.vm, source_address))
