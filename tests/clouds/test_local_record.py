"""The record survives crashes, and is believed only if it is ours and of this boot."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from architect.clouds.local.fabric import next_provider, sole_supervisor
from architect.clouds.local.layout import state_folder
from architect.clouds.local.market import due_hosts, next_deadline_s
from architect.clouds.local.record import (
    RECORD_VERSION,
    FabricRecord,
    HostRecord,
    PresenceState,
    RecordStore,
    agent_name,
    read_record,
    write_record,
)
from architect.errors import ConflictError, HostError, NotFoundError
from architect.runtime.boot import boot_id
from architect.runtime.processes import ProcessIdentity
from tests.clouds.metadata_fixture import posted

HOST = HostRecord("aws-1", "aws", "aws-local-1", "i-1", 1)


def record(*hosts: HostRecord) -> FabricRecord:
    """A record with these hosts, each with an agent."""
    made = FabricRecord(RECORD_VERSION, "00beef", 3, boot_id(), 1 << 30)
    for number, host in enumerate(hosts):
        made = made.with_host(host).with_process(agent_name(host.name), ProcessIdentity(100 + number, 1))
    return made


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "fabric.json"
    wanted = record(msgspec.structs.replace(HOST, notice=posted()))
    write_record(path, wanted)
    assert read_record(path) == wanted
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("content", [b"", b"{}", b"null", b"\xff\xfe", b'{"version": 1}', b"[" * 10000])
def test_a_record_that_is_none_is_no_record(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "fabric.json"
    assert read_record(path) is None
    path.write_bytes(content)
    assert read_record(path) is None


def test_a_record_of_another_version_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "fabric.json"
    write_record(path, msgspec.structs.replace(record(HOST), version=RECORD_VERSION + 1))
    assert read_record(path) is None


def test_of_another_boot_only_the_hosts_are_remembered(tmp_path: Path) -> None:
    path = tmp_path / "fabric.json"
    write_record(path, msgspec.structs.replace(record(msgspec.structs.replace(HOST, notice=posted())), boot_id="another"))
    read = read_record(path)
    assert read is not None
    assert read.hosts == {"aws-1": HOST} and read.processes == {} and read.supervisor is None


def test_a_host_is_forgotten_with_its_agent() -> None:
    other = msgspec.structs.replace(HOST, name="aws-2", slot=2)
    left = record(HOST, other).without_host("aws-1")
    assert list(left.hosts) == ["aws-2"] and list(left.processes) == ["agent-aws-2"]


def test_a_host_that_is_being_destroyed_is_no_host_any_more(tmp_path: Path) -> None:
    store = RecordStore(tmp_path / "fabric.json", record(HOST, leaving("gcp-1", "gcp")))
    assert store.host("aws-1") == HOST
    for name in ("gcp-1", "nobody"):
        with pytest.raises(NotFoundError, match=name):
            store.host(name)


def test_a_record_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    store = RecordStore(tmp_path / "fabric.json", record())
    store._path = tmp_path / "gone" / "fabric.json"
    with pytest.raises(HostError):
        store.change(record(HOST))
    assert store.record == record()


def test_clouds_take_turns_and_those_that_leave_do_not_count() -> None:
    made = record()
    order = []
    for number in range(5):
        provider = next_provider(made, 5)
        assert provider is not None
        order.append(provider)
        made = made.with_host(msgspec.structs.replace(HOST, name=f"h{number}", provider=provider))
    assert order == ["aws", "gcp", "azure", "aws", "gcp"]
    assert next_provider(made, 5) is None
    assert next_provider(made.with_host(leaving("h2", "azure")), 5) == "azure"


def test_what_is_due_and_what_comes_next() -> None:
    soon, late = posted(), posted("n-2")
    hosts = [
        HOST,
        msgspec.structs.replace(HOST, name="b", notice=msgspec.structs.replace(soon, deadline_monotonic_s=50.0)),
        msgspec.structs.replace(HOST, name="c", notice=msgspec.structs.replace(late, deadline_monotonic_s=70.0)),
    ]
    assert due_hosts(hosts, 40) == [] and next_deadline_s(hosts, 40) == 10
    assert due_hosts(hosts, 50) == ["b"] and next_deadline_s(hosts, 50) == 20
    assert due_hosts(hosts, 99) == ["b", "c"] and next_deadline_s(hosts, 99) is None


def test_a_fabric_has_one_supervisor(tmp_path: Path) -> None:
    folder = state_folder(Path("/tmp"))
    folder = msgspec.structs.replace(folder, root=tmp_path)
    with sole_supervisor(folder):
        with pytest.raises(ConflictError, match="has a supervisor"):
            with sole_supervisor(folder):
                raise AssertionError("two at once")
    with sole_supervisor(folder):
        pass


def leaving(name: str, provider: str) -> HostRecord:
    """A host that is being destroyed."""
    return msgspec.structs.replace(HOST, name=name, provider=provider, slot=2, state=PresenceState.DESTROYING)
