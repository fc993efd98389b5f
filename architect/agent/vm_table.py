"""The VMs of this host, and the ones that left: what reports are made of."""

from __future__ import annotations

from collections.abc import Iterator

from architect.agent.host import Host
from architect.agent.hosted_vm import HostedVm
from architect.agent.vm_record import VmFolder
from architect.errors import NotFoundError
from architect.model.ids import VmId
from architect.wire.agent_messages import MigrationReport

DEPARTED_KEPT_MAX = 256


class VmTable:
    """All VMs here, by id; and the last report of each move that took a VM away."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._vms: dict[VmId, HostedVm] = {}
        self.departed: dict[VmId, MigrationReport] = {}

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
        self.departed.pop(vm.record.id, None)
        self._host.changed()

    def drop(self, vm: VmId) -> None:
        """The VM is not here any more. Idempotent."""
        self._vms.pop(vm, None)
        self._host.changed()

    def depart(self, report: MigrationReport) -> None:
        """The VM left this host by a move."""
        self._vms.pop(report.vm, None)
        self.departed[report.vm] = report
        while len(self.departed) > DEPARTED_KEPT_MAX:
            self.departed.pop(next(iter(self.departed)))
        self._host.changed()
