"""The configurations and certificates of a local fabric's processes, written into its state folder. Idempotent."""

from __future__ import annotations

import contextlib
from pathlib import Path

from architect.clouds.local.layout import (
    CONTROL_PORT,
    EDGE_NAME,
    EDGE_PORT,
    MIGRATION_PORT,
    NIC,
    UNDERLAY_MTU,
    FabricLayout,
    StateFolder,
)
from architect.clouds.local.record import FabricRecord, HostRecord
from architect.model.config import AgentConfig, ControlConfig, EdgeConfig
from architect.model.ownership import OWNERSHIP_MARK
from architect.runtime.certificates import make_ca, make_certificate
from architect.runtime.config_file import write_config


def write_control(folder: StateFolder, layout: FabricLayout) -> Path:
    """The control plane's configuration, with its certificate; returns the file."""
    home = folder.role("control")
    _prepare(folder, home, "control")
    config = ControlConfig(
        fabric=layout.fabric,
        address=str(layout.machine_link.inner_address),
        port=CONTROL_PORT,
        rest_socket=str(folder.rest_socket),
        state_dir=str(home / "state"),
        tls_dir=str(home / "tls"),
        edge_name=EDGE_NAME,
        edge_address=str(layout.edge_link.inner_address),
        edge_port=EDGE_PORT,
        local_state_dir=str(folder.root),
    )
    write_config(home / "config.json", config)
    return home / "config.json"


def write_edge(folder: StateFolder, layout: FabricLayout) -> Path:
    """The edge's configuration, with its certificate; returns the file."""
    home = folder.role("edge")
    _prepare(folder, home, f"edge:{EDGE_NAME}")
    config = EdgeConfig(
        fabric=layout.fabric,
        name=EDGE_NAME,
        nic=NIC,
        underlay_address=str(layout.edge_link.inner_address),
        public_addresses=layout.public_addresses,
        port=EDGE_PORT,
        state_dir=str(home / "state"),
        tls_dir=str(home / "tls"),
    )
    write_config(home / "config.json", config)
    return home / "config.json"


def write_agent(folder: StateFolder, layout: FabricLayout, record: FabricRecord, host: HostRecord) -> Path:
    """A host's configuration, with its agent's certificate; returns the file."""
    home = folder.host(host.name)
    _prepare(folder, home, f"agent:{host.name}")
    for shared in (folder.cache, folder.ownership):
        shared.mkdir(parents=True, exist_ok=True, mode=0o700)
    (folder.ownership / OWNERSHIP_MARK).touch()
    _link(home / "ownership", folder.ownership)
    config = AgentConfig(
        fabric=layout.fabric,
        name=host.name,
        provider=host.provider,
        region=host.region,
        instance=host.instance,
        nic=NIC,
        address=str(layout.host_link(host.slot).inner_address),
        migration_port=MIGRATION_PORT,
        memory_bytes=record.memory_bytes,
        state_dir=str(home / "state"),
        cache_dir=str(folder.cache),
        tls_dir=str(home / "tls"),
        control_address=str(layout.machine_link.inner_address),
        control_port=CONTROL_PORT,
        edge_name=EDGE_NAME,
        edge_address=str(layout.edge_link.inner_address),
        edge_port=EDGE_PORT,
        ownership_dir=str(home / "ownership"),
        underlay_mtu=UNDERLAY_MTU,
    )
    write_config(home / "config.json", config)
    return home / "config.json"


def _link(path: Path, target: Path) -> None:
    """Each host has a way of its own to what all share, as it would have a mount: one that is cut cuts off that host only."""
    with contextlib.suppress(FileExistsError):
        path.symlink_to(target)


def _prepare(folder: StateFolder, home: Path, common_name: str) -> None:
    (home / "state").mkdir(parents=True, exist_ok=True, mode=0o755)
    make_ca(folder.authority)
    make_certificate(folder.authority, home / "tls", common_name)
