"""A VM's folder: what is written there is whole, and a disk that refuses is the host's fault, by name."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from architect.agent.vm_record import VmFolder, VmPhase, VmRecord
from architect.errors import HostError
from architect.model.ids import VmId
from tests.migration.handover_values import plan
from tests.no_room import no_file_longer_than

VM = VmId("vm-000000000001")


def record() -> VmRecord:
    spec = plan().spec
    return VmRecord(spec.request, VmPhase.RUNNING, 1, spec)


@pytest.fixture
def folder(tmp_path: Path) -> VmFolder:
    made = VmFolder(tmp_path, VM)
    made.make()
    return made


def test_a_disk_that_refuses_a_write_is_the_hosts_fault_and_what_was_there_stays(folder: VmFolder) -> None:
    folder.write(record())
    folder.record_path.with_name("vm.json.0.new").mkdir()  # where the new one would be written
    with pytest.raises(HostError, match="make room"):
        folder.write(msgspec.structs.replace(record(), term=2))
    assert folder.read() == record()


def test_a_file_of_a_move_replaces_the_one_before_as_a_whole(folder: VmFolder) -> None:
    folder.keep("handover.json", record())
    folder.keep("handover.json", msgspec.structs.replace(record(), term=2))
    assert msgspec.json.decode((folder.path / "handover.json").read_bytes(), type=VmRecord).term == 2
    assert [path.name for path in folder.path.iterdir()] == ["handover.json"]


def test_a_folder_that_cannot_be_made_is_the_hosts_fault(tmp_path: Path) -> None:
    (tmp_path / VM).touch()
    with pytest.raises(HostError, match="make room"):
        VmFolder(tmp_path, VM).make()


def test_removing_a_folder_takes_all_that_is_in_it_and_may_be_repeated(folder: VmFolder) -> None:
    folder.write(record())
    folder.remove()
    folder.remove()
    assert not folder.path.exists()


@pytest.mark.parametrize("phase", VmPhase)
def test_a_vm_that_is_still_to_come_is_held_by_no_term(phase: VmPhase) -> None:
    held = msgspec.structs.replace(record(), phase=phase, term=7).held_term
    assert held == (0 if phase is VmPhase.INCOMING else 7)


def test_a_full_disk_keeps_the_record_and_the_files_of_a_move_and_leaves_nothing_beside_them(folder: VmFolder) -> None:
    folder.write(record())
    folder.keep("handover.json", record())
    size_bytes = folder.record_path.stat().st_size
    longer = msgspec.structs.replace(record(), reason="x" * size_bytes)
    with no_file_longer_than(size_bytes):
        for write in (folder.write, lambda value: folder.keep("handover.json", value)):
            with pytest.raises(HostError, match="too large"):
                write(longer)
    assert folder.read() == record()
    assert sorted(path.name for path in folder.path.iterdir()) == ["handover.json", "vm.json"]
