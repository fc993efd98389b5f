"""What a local fabric consists of, kept in STATE/fabric.json so that a new supervisor finds what an old one made.

The record is written before an effect that must be undone or finished later (a host that appears, a host that is being destroyed,
a notice's deadline) and after a process has started. Deadlines are CLOCK_MONOTONIC, which all processes of one boot share; a
record of another boot describes nothing that still exists.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

import msgspec

from architect.errors import HostError, NotFoundError
from architect.model.notice import NoticeKind
from architect.runtime.boot import boot_id
from architect.runtime.processes import ProcessIdentity
from architect.runtime.whole_file import write_whole

RECORD_VERSION = 1


class PresenceState(StrEnum):
    """Whether a host is there."""

    PRESENT = "present"
    DESTROYING = "destroying"


class PostedNotice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A notice of the local spot market: at the deadline the host is destroyed."""

    id: str
    kind: NoticeKind
    posted: str
    deadline: str
    deadline_monotonic_s: float


class HostRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One local host. `incarnation` counts the changes of its notice."""

    name: str
    provider: str
    region: str
    instance: str
    slot: int
    state: PresenceState = PresenceState.PRESENT
    notice: PostedNotice | None = None
    incarnation: int = 1


class FabricRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of it. `numbers` are the last host numbers given, by provider; `processes` by name (control, edge, agent-HOST)."""

    version: int
    fabric: str
    index: int
    boot_id: str
    memory_bytes: int
    hosts: dict[str, HostRecord] = {}
    numbers: dict[str, int] = {}
    processes: dict[str, ProcessIdentity] = {}
    supervisor: ProcessIdentity | None = None

    def with_host(self, host: HostRecord) -> FabricRecord:
        """With that host added or replaced."""
        return msgspec.structs.replace(self, hosts={**self.hosts, host.name: host})

    def without_host(self, name: str) -> FabricRecord:
        """Without that host and its agent."""
        hosts = {key: host for key, host in self.hosts.items() if key != name}
        processes = {key: process for key, process in self.processes.items() if key != agent_name(name)}
        return msgspec.structs.replace(self, hosts=hosts, processes=processes)

    def with_process(self, name: str, process: ProcessIdentity) -> FabricRecord:
        """With that process under that name."""
        return msgspec.structs.replace(self, processes={**self.processes, name: process})


_FABRIC_RECORD_DECODER = msgspec.json.Decoder(FabricRecord)


def agent_name(host: str) -> str:
    """How the process of a host's agent is called in records and log files."""
    return f"agent-{host}"


def read_record(path: Path) -> FabricRecord | None:
    """The record; None if there is none, or none that can be believed. Of an earlier boot only the hosts' names are true."""
    try:
        record = _FABRIC_RECORD_DECODER.decode(path.read_bytes())
    except (OSError, msgspec.MsgspecError):
        return None
    if record.version != RECORD_VERSION:
        return None
    if record.boot_id == boot_id():
        return record
    hosts = {name: msgspec.structs.replace(host, notice=None) for name, host in record.hosts.items()}
    return msgspec.structs.replace(record, hosts=hosts, processes={}, supervisor=None)


def write_record(path: Path, record: FabricRecord) -> None:
    """Replace the record as a whole; a reader, or a supervisor after this one was killed, sees the old one or the new one.

    It is not flushed: of what it describes a crash of the machine leaves nothing but the hosts' names.

    Raises:
        HostError: the state folder cannot be written.
    """
    try:
        write_whole(path, msgspec.json.format(msgspec.json.encode(record), indent=2))
    except OSError as error:
        raise HostError(f"state folder {path.parent}", str(error), "see that it exists and has room") from error


class RecordStore:
    """The record of a running supervisor: each change is on disk before anything follows from it."""

    def __init__(self, path: Path, record: FabricRecord) -> None:
        self._path = path
        self.record = record
        write_record(path, record)

    def change(self, record: FabricRecord) -> None:
        """Replace it.

        Raises:
            HostError: as `write_record`; then nothing has changed.
        """
        write_record(self._path, record)
        self.record = record

    def host(self, name: str) -> HostRecord:
        """The host of that name.

        Raises:
            NotFoundError: there is none, or it is being destroyed.
        """
        host = self.record.hosts.get(name)
        if host is None or host.state is not PresenceState.PRESENT:
            there = ", ".join(sorted(self.record.hosts)) or "none"
            raise NotFoundError(f"host {name}", f"no such host here (there are: {there})", "see `architect host ls`")
        return host
