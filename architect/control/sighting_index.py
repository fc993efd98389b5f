"""Sighting index: which hosts' reports show a VM, found by the VM. So a look at one VM costs by the hosts that have it, not by
what the fleet has.
"""

from __future__ import annotations

import msgspec

from architect.model.ids import HostName, VmId
from architect.wire.agent_messages import VmObservation


class Sighted(msgspec.Struct, frozen=True):
    """A host that reports the VM, and what it says."""

    host: HostName
    observation: VmObservation


class SightingIndex:
    """What every host that is connected reports, by VM."""

    def __init__(self) -> None:
        self._by_host: dict[HostName, tuple[VmObservation, ...]] = {}
        self._by_vm: dict[VmId, dict[HostName, Sighted]] = {}

    def put(self, host: HostName, observations: tuple[VmObservation, ...]) -> None:
        """This is what the host reports from now on; nothing, if it is not connected any more."""
        for old in self._by_host.pop(host, ()):
            if (there := self._by_vm.get(old.id)) is not None:
                there.pop(host, None)
                if not there:
                    del self._by_vm[old.id]
        if observations:
            self._by_host[host] = observations
        for seen in observations:
            self._by_vm.setdefault(seen.id, {})[host] = Sighted(host, seen)

    def of(self, vm: VmId) -> list[Sighted]:
        """All hosts that report the VM."""
        return list(self._by_vm.get(vm, {}).values())
