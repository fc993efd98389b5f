"""Configurations of the long-running processes, made by who starts them (`architect up` for local hosts).

Paths are absolute. Addresses are IPv4, as text. Ports are TCP.
"""

from __future__ import annotations

from typing import Annotated

import msgspec


class ControlConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`architect control`: takes agents at `address:port` (TLS), the command line at the unix socket `rest_socket`.

    A host that was silent for `host_lost_after_s` is shown as lost and gets no VM; one that was silent for `host_gone_after_s` is
    taken for gone with all that it ran. Between them lies the time that an agent needs to be started again; a provider that says
    that the instance is gone ends it. `local_state_dir`: the local provider to ask, "" for none.
    """

    fabric: str
    address: str
    port: int
    rest_socket: str
    state_dir: str
    tls_dir: str
    edge_name: str
    edge_address: str
    edge_port: int
    inner_network: str = "10.88.0.0/16"
    report_interval_s: float = 1.0
    host_lost_after_s: float = 5.0
    host_gone_after_s: float = 30.0
    local_state_dir: str = ""


class EdgeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`architect edge`: owns `public_addresses` on `nic`, ends tunnels at `underlay_address`, takes requests at `:port` (TLS)."""

    fabric: str
    name: str
    nic: str
    underlay_address: str
    public_addresses: tuple[str, ...]
    port: int
    state_dir: str
    tls_dir: str


class AgentConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`architect agent`: one host. `memory_bytes` is what its VMs may take together; `cache_dir` holds what hosts of a machine may
    share and rebuild (guest kernel, initramfs, templates); `ownership_dir` is the shared ownership log; `metadata_url` is where the
    cloud's metadata server answers, as seen from the host, and `provider` (aws, gcp, azure) which protocol it speaks.

    `lease_s` is how long VMs run on while the host reaches neither the ownership log nor the edge: longer than one slow answer of
    the log (10 s) and the pause between two questions (3 s), short against what it takes another host to bring a VM back.
    `move_bandwidth_bytes_s` is what each move from here may send per second, unless it names a limit itself or the host has a
    deadline; 0 is no limit.
    """

    fabric: str
    name: str
    provider: str
    region: str
    instance: str
    nic: str
    address: str
    migration_port: int
    memory_bytes: int
    state_dir: str
    cache_dir: str
    tls_dir: str
    control_address: str
    control_port: int
    edge_name: str
    edge_address: str
    edge_port: int
    ownership_dir: str
    metadata_url: str = "http://169.254.169.254"
    underlay_mtu: int = 1500
    vm_uid: int = 64055
    lease_s: float = 15.0
    move_bandwidth_bytes_s: Annotated[int, msgspec.Meta(ge=0)] = 0
