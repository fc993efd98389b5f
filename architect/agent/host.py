"""Host: what all VMs of one agent share: configuration, guest files, stores, network, room.

Made once when the agent starts; closing it lets go of everything and stops nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from architect.agent.guest_files import ARTIFACTS, prepare_guest_files
from architect.conduit.edge_client import EdgeClient
from architect.conduit.host_datapath import HostDatapath
from architect.drafter.machine_options import BootFiles
from architect.drafter.qemu_facts import read_qemu_version
from architect.errors import CapacityError
from architect.images import BaseStore
from architect.migration.ownership_directory import DirectoryOwnershipLog
from architect.model.config import AgentConfig
from architect.model.ids import VmId
from architect.model.sizes import format_size
from architect.pvm.accelerator import detect_accelerator
from architect.pvm.tsc import measure_tsc_khz
from architect.runtime.clock import Clock, Entropy, SystemClock, SystemEntropy
from architect.runtime.fork_server import ForkServer
from architect.runtime.tls import san_name
from architect.silo.memory_client import memory_server
from architect.wire.agent_messages import HostFacts

_log = logging.getLogger(__name__)


@dataclass
class Host:
    """What a VM needs of its host. `reserved` is the memory promised to VMs, by id."""

    config: AgentConfig
    facts: HostFacts
    boot: BootFiles
    bases: BaseStore
    datapath: HostDatapath
    edge: EdgeClient
    ownership: DirectoryOwnershipLog
    clock: Clock
    entropy: Entropy
    memory_server: ForkServer
    changed: Callable[[], None]
    reserved: dict[VmId, int]

    @property
    def vms_dir(self) -> Path:
        """Where the VMs' folders are."""
        return Path(self.config.state_dir) / "vms"

    @property
    def cache_dir(self) -> Path:
        """What hosts of one machine share: kernel, initramfs, templates."""
        return Path(self.config.cache_dir)

    @property
    def shim(self) -> Path:
        """The userfaultfd shim for QEMU."""
        return ARTIFACTS / "uffd_shim.so"

    @property
    def memory_free_bytes(self) -> int:
        """What a new VM may take."""
        return self.config.memory_bytes - sum(self.reserved.values())

    @property
    def server_name(self) -> str:
        """The name in this host's certificate, for TLS clients."""
        return san_name(f"agent:{self.config.name}")

    def reserve(self, vm: VmId, memory_bytes: int) -> None:
        """Promise memory to a VM. Idempotent.

        Raises:
            CapacityError: there is not so much.
        """
        free_bytes = self.memory_free_bytes + self.reserved.get(vm, 0)
        if memory_bytes > free_bytes:
            cause = f"has {format_size(free_bytes)} of memory free, the VM needs {format_size(memory_bytes)}"
            raise CapacityError(f"host {self.config.name}", cause, "choose another host, or less memory")
        self.reserved[vm] = memory_bytes
        self.changed()

    def release(self, vm: VmId) -> None:
        """Take the promise back. Idempotent."""
        self.reserved.pop(vm, None)
        self.changed()


async def open_host(config: AgentConfig, changed: Callable[[], None]) -> Host:
    """Look at the machine, fetch what guests boot from, attach to the network.

    Raises:
        HostError: the machine lacks something; names it.
    """
    cache_dir = Path(config.cache_dir)
    memory = memory_server(config.state_dir)
    guest_files = await prepare_guest_files(cache_dir)
    accelerator = await detect_accelerator(cache_dir)
    _log.info("accelerator %s: %s", accelerator.kind, accelerator.reason)
    facts = HostFacts(
        name=config.name,  # type: ignore[arg-type]
        provider=config.provider,
        region=config.region,
        address=config.address,
        migration_port=config.migration_port,
        memory_bytes=config.memory_bytes,
        cpus=os.cpu_count() or 1,
        accelerator=accelerator.kind,
        qemu_version=await read_qemu_version(),
        tsc_khz=await asyncio.to_thread(measure_tsc_khz),
        kernel_release=os.uname().release,
        kernel_sha256=guest_files.kernel_sha256,
        initramfs_sha256=guest_files.initramfs_sha256,
        underlay_mtu=config.underlay_mtu,
    )
    state_dir = Path(config.state_dir)
    (state_dir / "vms").mkdir(parents=True, exist_ok=True)
    for folder in (state_dir, state_dir / "vms"):
        folder.chmod(0o711)
    datapath = HostDatapath(config.fabric, config.name, config.nic, config.address)
    datapath.attach()
    edge = EdgeClient(config.edge_address, config.edge_port, Path(config.tls_dir), f"agent:{config.name}", config.edge_name)
    return Host(
        config, facts, guest_files.boot, BaseStore(state_dir / "images"), datapath, edge,
        DirectoryOwnershipLog(Path(config.ownership_dir), is_shared=True), SystemClock(), SystemEntropy(), memory, changed, {},
    )  # fmt: skip
