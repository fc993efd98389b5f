"""On a full disk, who writes a file whole keeps the one before, leaves nothing beside it, and goes on when there is room."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from architect.agent.vm_record import VmFolder, VmPhase, VmRecord
from architect.clouds.local.record import RECORD_VERSION, FabricRecord, write_record
from architect.conduit.edge_store import EdgeStore
from architect.conduit.edge_table import EdgeRecord, EdgeTable
from architect.errors import HostError
from architect.model.ids import VmId, Vni
from architect.runtime.boot import boot_id
from architect.runtime.whole_file import write_whole
from architect.silo.memory_role import MemoryRole
from architect.silo.memory_state import KeptState, keep_state
from tests.host.file_systems import tmpfs
from tests.migration.handover_values import plan

pytestmark = pytest.mark.host
Write = Callable[[Path, int], None]
"""Writes a file in that folder, its content told apart by the number."""


def _plain(folder: Path, number: int) -> None:
    write_whole(folder / "plain", f"{number}".encode() * 20_000)


def _vm_record(folder: Path, number: int) -> None:
    spec = plan().spec
    made = VmFolder(folder, VmId("vm-000000000001"))
    made.make()
    made.write(VmRecord(spec.request, VmPhase.RUNNING, number, spec))


def _memory_state(folder: Path, number: int) -> None:
    keep_state(folder, KeptState(number, 1, MemoryRole.FRESH))


def _edge_table(folder: Path, number: int) -> None:
    EdgeStore(folder).save(EdgeTable((EdgeRecord(VmId("vm-000000000001"), Vni(number), "10.88.0.1", "203.0.113.10"),)))


def _fabric_record(folder: Path, number: int) -> None:
    write_record(folder / "fabric.json", FabricRecord(RECORD_VERSION, "00beef", number, boot_id(), 1 << 30))


@pytest.mark.parametrize(
    ("write", "refusal"),
    [(_plain, OSError), (_memory_state, OSError), (_vm_record, HostError), (_edge_table, HostError), (_fabric_record, HostError)],
)
def test_a_full_disk_keeps_the_file_before_and_nothing_beside_it(tmp_path: Path, write: Write, refusal: type[Exception]) -> None:
    with tmpfs(tmp_path / "disk", 256 << 10) as disk:
        write(disk, 1)
        (path,) = (each for each in disk.rglob("*") if each.is_file())
        before = path.read_bytes()
        filler = disk / "filler"
        _fill(filler)
        with pytest.raises(refusal, match="No space left"):
            write(disk, 2)
        assert path.read_bytes() == before
        assert {each for each in disk.rglob("*") if each.is_file()} == {path, filler}
        filler.unlink()
        write(disk, 2)
        assert path.read_bytes() != before


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            os.write(file.fileno(), bytes(4096))
