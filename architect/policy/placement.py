"""Placement: on which host a VM may run. Pure: facts in, a choice or the reasons against each host out.

The host with the most free memory wins; of equals the first by name, so that the same facts always give the same plan. A host
that drains, leaves or is lost takes nothing. `memory_free_bytes` is what the host reported, less what is already promised there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from architect.model.ids import HostName
from architect.model.sizes import format_size


class HostRoom(msgspec.Struct, frozen=True):
    """What placement knows of a host. `closed` says why it takes no VM, and is empty if it does."""

    name: HostName
    memory_free_bytes: int
    closed: str = ""


class Placed(msgspec.Struct, frozen=True):
    """The VM goes to `host`."""

    host: HostName


class NoRoom(msgspec.Struct, frozen=True):
    """No host can take the VM; `reason` names each host and why."""

    reason: str


def place(memory_bytes: int, hosts: Iterable[HostRoom], refused: Mapping[HostName, str] | None = None) -> Placed | NoRoom:
    """The host for a VM of `memory_bytes`; `refused` names hosts that must not be used, and why."""
    refused = refused or {}
    rooms = sorted(hosts, key=lambda room: (-room.memory_free_bytes, room.name))
    for room in rooms:
        if not _against(room, memory_bytes, refused):
            return Placed(room.name)
    wanted = f"no host with {format_size(memory_bytes)} free"
    if not rooms:
        return NoRoom(f"{wanted}: there is no host")
    return NoRoom(f"{wanted}: " + ", ".join(f"{room.name} {_against(room, memory_bytes, refused)}" for room in rooms))


def _against(room: HostRoom, memory_bytes: int, refused: Mapping[HostName, str]) -> str:
    """What speaks against the host, as the rest of a sentence that begins with its name; empty if nothing does."""
    if room.closed:
        return room.closed
    if room.name in refused:
        return refused[room.name]
    if room.memory_free_bytes < memory_bytes:
        return f"has {format_size(room.memory_free_bytes)}"
    return ""
