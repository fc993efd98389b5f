"""Connections: BPF programs, edge, host attachment, and the live switch of a VM's flows from host to host."""

from architect.conduit.edge_client import EdgeClient
from architect.conduit.host_datapath import HostDatapath, PortCounters, PortFacts, VmPort, cleanup
from architect.conduit.layout import PortState
from architect.conduit.switch import SourceFlows, SteeredVm, TargetFlows
from architect.conduit.tap import Tap

__all__ = [
    "EdgeClient",
    "HostDatapath",
    "PortCounters",
    "PortFacts",
    "PortState",
    "SourceFlows",
    "SteeredVm",
    "Tap",
    "TargetFlows",
    "VmPort",
    "cleanup",
]
