"""What can go wrong with a move of memory, beside the errors of its parts."""

from __future__ import annotations

from architect.errors import ConflictError, HandoverError, LostError, PeerError


class MemoryStateError(ConflictError):
    """The memory process cannot do that in its state."""


class CutError(HandoverError):
    """The target's memory at the cut is not the source's; the move has to be undone."""


class MemoryLostError(LostError):
    """Pages of a VM that runs after a post-copy cut can no longer be had."""


class DigestError(PeerError):
    """Pages that arrived are not those that were sent."""
