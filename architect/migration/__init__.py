"""Live handover of a VM between two hosts: pure engines, the ports they need, the drivers of both sides.

`HandoverSource` moves VMs away, `HandoverTarget` takes them in; an agent gives them its hosts' ports and runs both.
"""

from architect.migration.handover_plan import (
    HandoverLimits,
    HandoverPlan,
    MemoryCut,
    MemoryProgress,
    MirrorProgress,
    RoundStats,
)
from architect.migration.handover_source import HandoverSource, error_of_report
from architect.migration.handover_target import HandoverTarget, TargetConnection
from architect.migration.ports import MIRROR_TUNNEL, POSTCOPY_TUNNEL
from architect.migration.source_ports import Handover, SourcePorts
from architect.migration.target_ports import MemoryListener, TargetPorts

__all__ = [
    "MIRROR_TUNNEL",
    "POSTCOPY_TUNNEL",
    "Handover",
    "HandoverLimits",
    "HandoverPlan",
    "HandoverSource",
    "HandoverTarget",
    "MemoryCut",
    "MemoryListener",
    "MemoryProgress",
    "MirrorProgress",
    "RoundStats",
    "SourcePorts",
    "TargetConnection",
    "TargetPorts",
    "error_of_report",
]
