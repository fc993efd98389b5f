"""What an agent does with a VM that it finds when it starts: a pure decision from the ownership log.

The agent may have died (`kill -9`) at any instant of a handover, as its source or as its target, and the other side may be past
the commit, or about to commit. Nothing that the dead agent knew is needed: the log decides. The record of the term that was at
stake is *created*, not only read: an answer "there is none" could be overtaken by one that is still on its way.
"""

from __future__ import annotations

from enum import StrEnum

from architect.model.ids import HostName, MigrationId, VmId
from architect.model.ownership import OwnershipRecord, RecordKind


class FoundRole(StrEnum):
    """What the found machine was. INCOMING: QEMU was started to receive a move; OWN: the VM had run here."""

    OWN = "own"
    INCOMING = "incoming"


class FoundVerdict(StrEnum):
    """What to do with it. SERVE: another host runs it, and may still need its pages and blocks from here."""

    RUN = "run"
    DESTROY = "destroy"
    SERVE = "serve"


def abort_record(vm: VmId, term: int, keeper: HostName, writer: str, migration: MigrationId | str = "") -> OwnershipRecord:
    """The record by which `keeper` keeps the VM after a handover from `term - 1` that did not come about."""
    return OwnershipRecord(vm=vm, term=term, kind=RecordKind.ABORT, host=keeper, writer=writer, migration=str(migration))


def hand_back_record(vm: VmId, term: int, source: HostName, writer: str, migration: MigrationId) -> OwnershipRecord:
    """The record by which a target that owns the VM by `term - 1`, and has never told it to run, gives it back."""
    return run_record(vm, term, source, writer, migration)


def run_record(vm: VmId, term: int, host: HostName, writer: str, migration: MigrationId) -> OwnershipRecord:
    """The record by which `host` takes the VM over."""
    return OwnershipRecord(vm=vm, term=term, kind=RecordKind.RUN, host=host, writer=writer, migration=migration)


def resolve_found_paused(host: HostName, decided: OwnershipRecord, is_serving: bool) -> FoundVerdict:
    """What to do with a VM found paused (or halted before its first instruction) on `host`.

    :param decided: the record that exists, after an attempt to create the abort record, for the term that was at stake; or a
        later one.
    :param is_serving: its memory process holds an open post-copy session.
    """
    if decided.kind is not RecordKind.END and decided.host == host:
        return FoundVerdict.RUN
    return FoundVerdict.SERVE if is_serving and decided.kind is RecordKind.RUN else FoundVerdict.DESTROY


def resolve_found_running(host: HostName, latest: OwnershipRecord | None) -> FoundVerdict:
    """What to do with a VM found running on `host`: it runs on, unless the log says that it is another's (a takeover by force)."""
    if latest is None or (latest.kind is not RecordKind.END and latest.host == host):
        return FoundVerdict.RUN
    return FoundVerdict.DESTROY
