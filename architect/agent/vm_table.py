"""The VMs of this host: what reports are made of."""

from __future__ import annotations

from collections.abc import Iterator

from architect.agent.host import Host
from architect.agent.hosted_vm import HostedVm
from architect.agent.vm_record import VmFolder
from architect.errors import NotFoundError
from architect.model.ids import VmId


class VmTable:
    """All VMs here, by id."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._vms: dict[VmId, HostedVm] = {}

    def __iter__(self) -> Iterator[HostedVm]:
        return iter(list(self._vms.values()))

    def folder(self, vm: VmId) -> VmFolder:
        """The VM's folder, whether it exists or not."""
        return VmFolder(self._host.vms_dir, vm)

    def get(self, vm: VmId) -> HostedVm | None:
        """The VM, if it is here."""
        return self._vms.get(vm)

    def find(self, vm: VmId) -> HostedVm:
        """The VM.

        Raises:
            NotFoundError: it is not here.
        """
        found = self._vms.get(vm)
        if found is None:
            raise NotFoundError(f"vm {vm}", f"is not on host {self._host.config.name}", "see `architect ps`")
        return found

    def add(self, vm: HostedVm) -> None:
        """The VM is here now."""
        self._vms[vm.record.id] = vm
        self._host.changed()

    def drop(self, vm: VmId) -> None:
        """The VM is not here any more. Idempotent."""
        self._vms.pop(vm, None)
        self._host.changed()
