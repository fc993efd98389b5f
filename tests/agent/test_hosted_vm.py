"""HostedVm: what has come about is noted even if the disk is full."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from architect.agent.hosted_vm import HostedVm
from architect.agent.vm_record import VmFolder, VmPhase, VmRecord
from architect.errors import HostError
from tests.migration.handover_values import plan


def test_a_fact_is_known_though_the_disk_is_full_and_a_wish_is_not(tmp_path: Path) -> None:
    spec, told = plan().spec, []
    folder = VmFolder(tmp_path, spec.id)
    folder.make()
    host = cast("Any", SimpleNamespace(changed=lambda: told.append("changed")))
    vm = HostedVm(host, folder, VmRecord(spec.request, VmPhase.RUNNING, 1, spec))
    vm.note(term=2)
    full = folder.record_path.with_name("vm.json.0.new")
    full.mkdir()  # where the new record would be written
    with pytest.raises(HostError):
        vm.note(term=3)
    assert (vm.record.term, told) == (2, ["changed"])
    vm.note_fact(term=4)
    assert (vm.record.term, told) == (4, ["changed", "changed"])
    full.rmdir()
    vm.note(exit_code=0)
    written = folder.read()
    assert written is not None and (written.term, written.exit_code) == (4, 0), "the next note writes it, too"
