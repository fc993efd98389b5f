"""What fake agents hold: VMs and handovers as values, and the facts of hosts that do not exist."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import msgspec

from architect.errors import ArchitectError
from architect.model.handover_state import HandoverState
from architect.model.ids import HostName
from architect.model.image import BaseDiskRef, ProcessConfig
from architect.model.sizes import GIB
from architect.model.vm_spec import MachineSpec, VmRequest, VmSpec
from architect.model.vm_state import VmState
from architect.wire.agent_messages import HostFacts, MigrationReport, VmObservation


@dataclass
class FakeVm:
    """A VM on a host."""

    request: VmRequest
    term: int
    state: VmState = VmState.CREATING
    exit_code: int | None = None
    reason: str = ""
    fills_from: str = ""
    waits_because: str = ""
    log: bytearray = field(default_factory=bytearray)
    log_start: int = 0  # what was before has been dropped
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def observation(self) -> VmObservation:
        """As its host reports it."""
        return VmObservation(
            self.request.id, self.state, self.term, spec=_spec(self.request), reason=self.reason or self.waits_because,
            exit_code=self.exit_code, fills_from=self.fills_from, waits_because=self.waits_because,
        )  # fmt: skip

    def touch(self) -> None:
        """Wake who waits for a change."""
        self.changed.set()
        self.changed = asyncio.Event()


@dataclass
class FakeMove:
    """A handover under way."""

    report: MigrationReport
    error: ArchitectError | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def advance(self, state: HandoverState, **more: Any) -> None:
        """Enter a state and wake who follows."""
        self.report = msgspec.structs.replace(self.report, state=state, **more)
        self.changed.set()
        self.changed = asyncio.Event()


def fake_facts(name: str, memory_bytes: int = 2 * GIB, provider: str = "aws", port: int = 7402) -> HostFacts:
    """Facts of a host that does not exist."""
    return HostFacts(
        name=HostName(name),
        provider=provider,
        region=f"{provider}-region-1",
        address="127.0.0.1",
        migration_port=port,
        memory_bytes=memory_bytes,
        cpus=4,
        accelerator="tcg",
        qemu_version="7.2.0",
        tsc_khz=2_000_000,
        kernel_release="6.18",
        kernel_sha256="0" * 64,
        initramfs_sha256="0" * 64,
    )


def _spec(request: VmRequest) -> VmSpec:
    return VmSpec(
        request,
        MachineSpec(request.cpus, request.memory_bytes, request.mtu, "0" * 64, "0" * 64),
        BaseDiskRef("0" * 64, GIB),
        ProcessConfig(("/init",)),
        "02:00:00:00:00:01",
    )
