"""Cross index: the book's records by what they are looked for, other than their key: a host's VMs, a VM's move, a name's VM.

Kept up with each record that is shown or deleted, so that a look costs by what it finds, not by what the book holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from architect.control.records import MigrationRecord, VmRecord
from architect.model.ids import HostName, MigrationId, VmId

KeyT = TypeVar("KeyT")
IdT = TypeVar("IdT")
RecordT = TypeVar("RecordT")


class CrossIndex:
    """The lookups. `open_moves` are the moves under way, oldest first."""

    def __init__(self, vms: Iterable[VmRecord], moves: Iterable[MigrationRecord]) -> None:
        self.open_moves: dict[MigrationId, MigrationRecord] = {}
        self._moves_of: dict[VmId, dict[MigrationId, MigrationRecord]] = {}
        self._moves_at: dict[HostName, dict[MigrationId, MigrationRecord]] = {}
        self._vms_on: dict[HostName, dict[VmId, VmRecord]] = {}
        self._vms_named: dict[str, dict[VmId, VmRecord]] = {}
        for vm in vms:
            self.put_vm(None, vm)
        for move in moves:
            self.put_move(None, move)

    def put_vm(self, before: VmRecord | None, after: VmRecord | None) -> None:
        """The VM's record is `after` now, or gone."""
        if before is not None and (after is None or after.host != before.host):
            _take(self._vms_on, before.host, before.id)
        if before is not None and (after is None or after.is_tombstone or after.request.name != before.request.name):
            _take(self._vms_named, before.request.name, before.id)
        if after is not None:
            self._vms_on.setdefault(after.host, {})[after.id] = after
            if not after.is_tombstone:
                self._vms_named.setdefault(after.request.name, {})[after.id] = after

    def put_move(self, before: MigrationRecord | None, after: MigrationRecord | None) -> None:
        """The move's record is `after` now, or gone."""
        if after is not None and not after.state.is_terminal:
            self.open_moves[after.id] = after
            self._moves_of.setdefault(after.vm, {})[after.id] = after
            for end in (after.source, after.target):
                self._moves_at.setdefault(end, {})[after.id] = after
        elif before is not None and self.open_moves.pop(before.id, None) is not None:
            _take(self._moves_of, before.vm, before.id)
            for end in (before.source, before.target):
                _take(self._moves_at, end, before.id)

    def move_of(self, vm: VmId) -> MigrationRecord | None:
        """The VM's move that is under way, if there is one."""
        return next(iter(self._moves_of.get(vm, {}).values()), None)

    def moves_at(self, host: HostName) -> list[MigrationRecord]:
        """The moves under way from the host or to it."""
        return list(self._moves_at.get(host, {}).values())

    def vms_on(self, host: HostName) -> list[VmRecord]:
        """The VMs whose records name the host."""
        return list(self._vms_on.get(host, {}).values())

    def vm_named(self, name: str) -> VmRecord | None:
        """The VM of that name which is not removed."""
        return next(iter(self._vms_named.get(name, {}).values()), None)


def _take(index: dict[KeyT, dict[IdT, RecordT]], key: KeyT, identity: IdT) -> None:
    """Take a record out of an index of records by key; an empty key goes, too."""
    found = index.get(key, {})
    found.pop(identity, None)
    if not found:
        index.pop(key, None)
