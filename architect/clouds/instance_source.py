"""Instance source: what a provider knows of a host's instance, asked when the host itself is silent.

A provider's word that an instance is gone is a fence: it never comes back, so what ran on it may be given up at once. Silence of
the provider says nothing.
"""

from __future__ import annotations

from typing import Protocol

from architect.model.ids import HostName


class InstanceSource(Protocol):
    """One provider's instances."""

    async def exists(self, host: HostName) -> bool:
        """Whether the instance of that host is there, running or not.

        Raises:
            ArchitectError: the provider does not say.
        """
        ...
