"""The supervisor's interface at STATE/local.sock, over `call` envelopes: who may open the socket (root) may do all of it.

All requests are idempotent. Versions: client and supervisor are of one installation; another one is refused as unknown messages.
"""

from __future__ import annotations

import msgspec


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """One message; its class name is its tag."""


class BringUp(_Message, frozen=True):
    """Have at least `hosts` hosts and everything ready. Streams `Progress`, answers `FabricStatus`."""

    hosts: int


class ReadStatus(_Message, frozen=True):
    """Answers `FabricStatus`."""


class PreemptHost(_Message, frozen=True):
    """Post a notice at the host's metadata server; the host is destroyed `notice_s` from now. Answers `HostStatus`.

    A host under notice keeps the earlier of both deadlines.
    """

    host: str
    notice_s: float


class KillHost(_Message, frozen=True):
    """Destroy the host now, without a word. Answers `Done` when nothing of it is left."""

    host: str


class AddHost(_Message, frozen=True):
    """Make a host. `name` "" takes the provider's next number. Streams `Progress`, answers `HostAdded` when its agent is ready."""

    provider: str
    name: str = ""


class RemoveHost(_Message, frozen=True):
    """Stop the host's agent and destroy the host. Answers `Done`."""

    host: str


class StopSupervisor(_Message, frozen=True):
    """End the supervisor; what it supervises goes on. Answers `Done`."""


class Progress(_Message, frozen=True):
    """A line for people."""

    text: str


class NoticeStatus(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A posted notice."""

    id: str
    kind: str
    posted: str
    deadline: str


class HostStatus(_Message, frozen=True):
    """One host. `agent_pid` is 0 while its agent is being started again."""

    name: str
    provider: str
    region: str
    instance: str
    address: str
    namespace: str
    state: str
    agent_pid: int
    notice: NoticeStatus | None = None


class HostAdded(_Message, frozen=True):
    """The host that was asked for; `is_new` is false where it was there already."""

    host: HostStatus
    is_new: bool


class FabricStatus(_Message, frozen=True):
    """The fabric."""

    fabric: str
    state_dir: str
    edge_addresses: tuple[str, ...]
    outside_address: str
    supervisor_pid: int
    control_pid: int
    edge_pid: int
    edge_namespace: str
    hosts: tuple[HostStatus, ...]


class Done(_Message, frozen=True):
    """It is done."""


LocalMessage = (
    BringUp
    | ReadStatus
    | PreemptHost
    | KillHost
    | AddHost
    | RemoveHost
    | StopSupervisor
    | Progress
    | HostStatus
    | HostAdded
    | FabricStatus
    | Done
)
