"""How a simulation ended."""

from __future__ import annotations

from typing import Any

import msgspec

from architect.testing.sim_events import SimEvent
from architect.testing.sim_trace import TraceLine
from architect.wire.agent_messages import MigrationReport


class Result(msgspec.Struct, frozen=True):
    """The verdict of one run, and everything that was seen. `facts` are counts by name."""

    scenario: Any
    violations: tuple[str, ...]
    reports: tuple[MigrationReport, ...]
    facts: dict[str, int]
    calls: int
    duration_s: float
    trace: tuple[TraceLine, ...]
    events: tuple[SimEvent, ...]

    @property
    def is_lost(self) -> bool:
        """Whether a VM runs nowhere."""
        return self.facts["lost"] > 0
