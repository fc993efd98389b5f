"""Notice sources: how an agent learns from its cloud that its host will be taken away.

A source watches one host. It yields the notice that stands each time that changes: one appeared, it changed, it was withdrawn
(None). Deadlines are bound to the monotonic clock when they are received, so a clock that is set later moves none. A metadata
server that fails, hangs or talks nonsense never ends the watch and never withdraws a notice: it shows in `health` only.
Adapters: `aws.imds`, `gcp.metadata`, `azure.scheduled_events`; `open_notice_source` in `clouds.providers` picks one.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

import msgspec

from architect.model.notice import Notice, NoticeKind


class NoticeHealth(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whether the metadata server answers. Times are monotonic; `failures` are in a row, 0 if the last reading went well."""

    answered_at_s: float | None = None
    failing_since_s: float | None = None
    failures: int = 0
    last_error: str = ""


class NoticeSource(Protocol):
    """The notices for one host. Used by one watcher at a time."""

    @property
    def health(self) -> NoticeHealth:
        """How the metadata server does."""
        ...

    def watch(self) -> AsyncGenerator[Notice | None, None]:
        """Yield the notice that stands (None: none) when first known and at every change, for ever.

        Close it with `contextlib.aclosing`. Cancellation ends it.
        """
        ...

    def remaining_s(self) -> float | None:
        """Seconds left until the deadline of the notice that stands, by the monotonic clock; 0 if it has passed."""
        ...

    async def acknowledge(self, notice_id: str) -> None:
        """Tell the cloud that the notice may proceed: nothing is left on the host. Idempotent; no effect where no cloud asks.

        Raises:
            UnavailableError: the metadata server does not answer; try again.
            PeerError: it answers nonsense.
        """
        ...


class Sighting(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A notice as one reading showed it.

    :param deadline_s: seconds since 1970 by the cloud's clock; None where the cloud tells none.
    :param assumed_s: how long the host has from the first sighting on, where the cloud tells no deadline.
    """

    id: str
    kind: NoticeKind
    deadline_s: float | None = None
    assumed_s: float = 30.0


class Reading(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one look at the metadata server showed, and what time it was there (None: it did not say)."""

    sighting: Sighting | None
    cloud_now_s: float | None = None


class NoticeReader(Protocol):
    """One cloud's protocol: a look at a time. A reader may hang for a bounded time until something changes."""

    async def read(self) -> Reading:
        """Look once.

        Raises:
            UnavailableError: no answer, or one that asks for patience.
            PeerError: nonsense.
        """
        ...

    async def acknowledge(self, notice_id: str) -> None:
        """As `NoticeSource.acknowledge`."""
        ...

    async def close(self) -> None:
        """Let go of connections. Idempotent; a later `read` opens them again."""
        ...
