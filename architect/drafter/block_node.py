"""The named nodes of a running machine's disk: which is the overlay now, which exist, and how one is removed.

The overlay's name changes when a post-copy puts a fresh one under the device (`overlay`, then `overlay-1`, ...); the name of the
filter above it (`disk`) never does. There is always exactly one overlay, apart from the moment of the exchange.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from architect.drafter.qemu_command import file_of
from architect.drafter.qmp import QmpConnection, QmpRefusedError
from architect.errors import HostError

_OVERLAY = re.compile(r"overlay(?:-(\d+))?")


class OverlayNode(msgspec.Struct, frozen=True):
    """The overlay of a running machine. `generation` counts the exchanges; `fdset` holds its file's descriptors."""

    name: str
    generation: int
    fdset: int

    @property
    def file(self) -> str:
        """The node of its file."""
        return file_of(self.name)


async def find_overlay(qmp: QmpConnection, vm: str) -> OverlayNode:
    """The overlay that the disk stands on (the newest, in the middle of an exchange).

    Raises:
        HostError: the machine has none (it was started without a disk).
    """
    found: OverlayNode | None = None
    nodes = await nodes_by_name(qmp)
    for name in nodes:
        if (match := _OVERLAY.fullmatch(name)) is not None and file_of(name) in nodes:
            generation = int(match[1] or 0)
            if found is None or generation > found.generation:
                file = str(nodes[file_of(name)]["file"])
                found = OverlayNode(name, generation, int(file.rpartition("/")[2]))
    if found is None:
        raise HostError(f"{vm}: disk", "the machine was started without an overlay", "start it with one")
    return found


async def nodes_by_name(qmp: QmpConnection) -> dict[str, Any]:
    """QEMU's own description of every named node."""
    return {str(node["node-name"]): node for node in await qmp.execute("query-named-block-nodes", {"flat": True})}


async def delete_nodes(qmp: QmpConnection, *names: str) -> None:
    """Remove nodes, in this order (users before what they use); those that do not exist are skipped.

    Raises:
        QmpRefusedError: one is still in use.
    """
    existing = await nodes_by_name(qmp)
    for name in names:
        if name in existing:
            await qmp.execute("blockdev-del", {"node-name": name})


async def delete_fdset(qmp: QmpConnection, fdset: int) -> None:
    """Close an fd set. Idempotent."""
    try:
        await qmp.execute("remove-fd", {"fdset-id": fdset})
    except QmpRefusedError as error:
        if "not found" not in error.description:
            raise
