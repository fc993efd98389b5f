"""Ownership records: who may run a VM (DESIGN §4).

A VM's log is a sequence of create-only records numbered by term, from 1. The owner of the VM is the `host` of the record with
the highest number; whoever creates record `term + 1` first decides what happens after `term`: a RUN record hands the VM to its
host, an ABORT record by the present owner keeps it where it is. `writer` is random per attempt, so that an author whose answer
was lost recognises its own record when it reads it back.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from architect.model.ids import HostName, VmId

OWNERSHIP_MARK = "ownership-log"
"""The file that says of a directory that it is the ownership log, and not a place where it should be mounted."""


class RecordKind(StrEnum):
    """What a record decides."""

    RUN = "run"
    ABORT = "abort"
    END = "end"


class OwnershipRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One create-only record: from term `term` on, `host` owns the VM. END closes the log: nobody may run the VM again."""

    vm: VmId
    term: int
    kind: RecordKind
    host: HostName
    writer: str
    migration: str = ""
