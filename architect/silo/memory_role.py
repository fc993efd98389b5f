"""How a VM's memory came to its host. Agents know it without knowing how memory is watched."""

from __future__ import annotations

from enum import Enum


class MemoryRole(Enum):
    """Made here, or to be received from another host."""

    FRESH = "fresh"
    INCOMING = "incoming"
