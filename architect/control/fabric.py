"""The fabric as the use cases see it: everything that they need, in one value made by `plane`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from architect.clouds import InstanceSource
from architect.control.bell import Bell
from architect.control.book import Book
from architect.control.edge_link import EdgeLink
from architect.control.fleet import Fleet
from architect.control.followers import Followers
from architect.control.jobs import Jobs
from architect.model.config import ControlConfig
from architect.model.ids import HostName, VmId
from architect.runtime.clock import Clock, Entropy


class Refusal(NamedTuple):
    """A host did not take a VM: why, since when, and until when others are asked first (monotonic times)."""

    reason: str
    since_s: float
    until_s: float


@dataclass(frozen=True)
class Fabric:
    """The parts of one control plane.

    `stuck`: why a VM that should leave its host cannot, as users see it; `refused`: hosts that did not take a VM a moment ago.
    `instances` knows whether a silent host's instance is there; `destroyed`: those of which it said that they are not.
    `uplinks`: the most bytes per second that the moves from a host were seen to send together.
    """

    config: ControlConfig
    book: Book
    fleet: Fleet
    edge: EdgeLink
    jobs: Jobs
    followers: Followers
    bell: Bell
    clock: Clock
    entropy: Entropy
    stuck: dict[VmId, str] = field(default_factory=dict)
    refused: dict[VmId, dict[HostName, Refusal]] = field(default_factory=dict)
    instances: InstanceSource | None = None
    destroyed: set[HostName] = field(default_factory=set)
    uplinks: dict[HostName, float] = field(default_factory=dict)
