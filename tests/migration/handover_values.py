"""Values that the tests of the handover share."""

from __future__ import annotations

from architect.migration import HandoverLimits, HandoverPlan, RoundStats
from architect.model.handover_state import MigrationMode
from architect.model.ids import HostName, MigrationId, VmId, Vni
from architect.model.image import BaseDiskRef, ProcessConfig
from architect.model.ownership import OwnershipRecord, RecordKind
from architect.model.vm_spec import MachineSpec, VmRequest, VmSpec
from architect.wire.agent_messages import HostFacts

VM = VmId("vm-000000000001")
MIGRATION = MigrationId("mig-000000000001")
LIMITS = HandoverLimits()


def facts(name: str = "aws-1", **changes: object) -> HostFacts:
    values: dict[str, object] = {
        "name": HostName(name), "provider": "aws", "region": "eu-1", "address": "10.0.0.1", "migration_port": 7000,
        "memory_bytes": 1 << 30, "cpus": 2, "accelerator": "tcg", "qemu_version": "7.2.22", "tsc_khz": 2_000_000,
        "kernel_release": "6.18", "kernel_sha256": "k", "initramfs_sha256": "i",
    }  # fmt: skip
    return HostFacts(**{**values, **changes})  # type: ignore[arg-type]


def spec(memory_bytes: int = 1 << 28) -> VmSpec:
    request = VmRequest(VM, "web", Vni(1), "oci:x", "10.88.0.2", memory_bytes=memory_bytes)
    machine = MachineSpec(1, memory_bytes, 1320, "k", "i")
    return VmSpec(request, machine, BaseDiskRef("d" * 64, 1000), ProcessConfig(("init",)), "02:00:00:00:00:01")


def plan(mode: MigrationMode = MigrationMode.AUTO, deadline_at_s: float | None = None, verify: bool = False) -> HandoverPlan:
    return HandoverPlan(MIGRATION, spec(), 3, facts("a"), facts("b"), mode, 0.0, deadline_at_s, verify)


def record(host: str, kind: RecordKind = RecordKind.RUN, term: int = 4) -> OwnershipRecord:
    return OwnershipRecord(VM, term, kind, HostName(host), "writer")


def stats(dirty_after: int, pages: int = 25_600, duration_s: float = 1.0) -> RoundStats:
    """A round that moved `pages` in `duration_s`: 100 MiB/s unless told otherwise."""
    return RoundStats(pages, pages * 4096, duration_s, dirty_after)
