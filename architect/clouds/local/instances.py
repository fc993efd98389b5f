"""The local provider's instances, as its supervisor knows them: a host that was killed or removed is not among them any more."""

from __future__ import annotations

from pathlib import Path

from architect.clouds.local.client import status
from architect.model.ids import HostName


class LocalInstances:
    """`InstanceSource` over the supervisor of a local fabric."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir

    async def exists(self, host: HostName) -> bool:
        """As the port says."""
        return host in {there["name"] for there in (await status(self._state_dir))["hosts"]}
