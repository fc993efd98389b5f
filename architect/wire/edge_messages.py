"""The edge's interface: what control plane and agents ask of it, over `call` envelopes on a TLS connection that they open.

The control plane defines services; agents steer. Every change carries the VM's ownership term, and the edge refuses an older one
than it has seen for the VM: a host that lost a VM cannot speak for it.

Version: `framing.PROTOCOL_VERSION` in EdgeHello, equal on both sides.
"""

from __future__ import annotations

import msgspec

from architect.model.endpoints import Endpoint, Publish
from architect.model.ids import VmId, Vni


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """One message; its class name is its tag."""


class EdgeHello(_Message, frozen=True):
    """Who connects. Answered by `EdgeFacts`."""

    version: int
    name: str


class EdgeFacts(_Message, frozen=True):
    """What the edge is: its public addresses, and the underlay address that tunnels end at."""

    public_addresses: tuple[str, ...]
    underlay_address: str


class DefineVm(_Message, frozen=True):
    """The VM exists: its inner address and what it publishes. Control plane only. Idempotent. Answered by `Endpoints`.

    Fails with ConflictError if a port is taken by another VM, and then nothing has changed.
    """

    vm: VmId
    vni: Vni
    inner_address: str
    publish: tuple[Publish, ...]


class ForgetVm(_Message, frozen=True):
    """The VM is gone: its services and flows end. Control plane only. Idempotent. Answered by `Done`."""

    vm: VmId


class Steer(_Message, frozen=True):
    """Send the VM's packets to `host` (underlay address) from now on.

    `previous`: still accept packets from there (the source while it runs, or forwards). A term lower than the highest seen for
    the VM is refused with ConflictError. Idempotent. Answered by `Steered` when the map entry is written.
    """

    vm: VmId
    vni: Vni
    term: int
    host: str
    previous: str = ""


class ResetFlows(_Message, frozen=True):
    """End every flow of the VM with resets both ways and forget them (after time went back). Answered by `Done`."""

    vm: VmId


class Ping(_Message, frozen=True):
    """Measure the round trip. Answered by `Pong`."""


class Pong(_Message, frozen=True):
    """Answer to Ping: what the edge's monotonic clock shows."""

    now_s: float


class ReadEdge(_Message, frozen=True):
    """What the edge has for a VM (all VMs: ""). Answered by `EdgeState`."""

    vm: VmId


class EdgeVm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One VM at the edge."""

    vm: VmId
    vni: Vni
    inner_address: str
    host: str
    previous: str
    term: int
    endpoints: tuple[Endpoint, ...]


class EdgeState(_Message, frozen=True):
    """The edge's table, and its packet counters by name."""

    vms: tuple[EdgeVm, ...]
    counters: dict[str, int]


class Endpoints(_Message, frozen=True):
    """What a VM's published ports became."""

    endpoints: tuple[Endpoint, ...]


class Steered(_Message, frozen=True):
    """The map entry is written: begun and done when the edge's monotonic clock showed that."""

    start_s: float
    end_s: float


class Done(_Message, frozen=True):
    """It is done."""


EdgeMessage = (
    EdgeHello
    | EdgeFacts
    | DefineVm
    | ForgetVm
    | Steer
    | ResetFlows
    | Ping
    | Pong
    | ReadEdge
    | EdgeState
    | Endpoints
    | Steered
    | Done
)
