"""The machine of a VM that comes: when it is certain that its guest never ran, so that the VM may be given back."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from architect.agent.move_target import TargetMachine
from architect.agent.vm_record import VmFolder
from architect.drafter.qmp import QmpRefusedError
from architect.migration.target_ports import NeverRanError
from architect.model.ids import VmId
from architect.runtime.boot import boot_id

VM = VmId("vm-000000000001")
BOOT = boot_id()


class _Machine:
    """QEMU, that runs its guest or refuses to."""

    is_running = True
    is_ending = False

    def __init__(self, *, refuses: bool, ended: str = "") -> None:
        self.refuses = refuses
        self.ended = ended

    async def resume(self, timeout_s: float) -> float:
        if self.refuses:
            raise QmpRefusedError(VM, "cont", "Could not reopen qcow2 layer: Input/output error")
        return 1.0


def _target(tmp_path: Path, machine: _Machine) -> tuple[TargetMachine, VmFolder]:
    folder = VmFolder(tmp_path, VM)
    folder.make()
    host = cast("Any", SimpleNamespace(config=SimpleNamespace(name="gcp-1")))
    record = SimpleNamespace(request=SimpleNamespace(name="web"))
    parts = SimpleNamespace(machine=machine)
    vm = cast("Any", SimpleNamespace(folder=folder, record=record, parts=parts, what_ended=lambda: machine.ended))
    return TargetMachine(host, vm, cast("Any", None)), folder


def test_a_machine_that_refuses_to_run_never_ran_and_a_successor_of_the_agent_knows(tmp_path: Path) -> None:
    machine = _Machine(refuses=True)
    for _ in range(2):
        target, folder = _target(tmp_path, machine)
        folder.note_halted(BOOT)
        with pytest.raises(NeverRanError, match="Could not reopen"):
            asyncio.run(target.resume())
        assert folder.halted.read_text() == BOOT


def test_a_machine_that_refuses_to_run_because_another_process_has_ended_says_so(tmp_path: Path) -> None:
    target, folder = _target(tmp_path, _Machine(refuses=True, ended="the memory process was killed"))
    folder.note_halted(BOOT)
    with pytest.raises(NeverRanError, match="refused to run it on host gcp-1: the memory process was killed"):
        asyncio.run(target.resume())


def test_a_machine_that_was_told_to_run_before_may_have_run_whatever_it_says_now(tmp_path: Path) -> None:
    target, folder = _target(tmp_path, _Machine(refuses=True))
    with pytest.raises(QmpRefusedError):
        asyncio.run(target.resume())
    folder.note_halted("another boot")
    with pytest.raises(QmpRefusedError):
        asyncio.run(target.resume())


def test_a_machine_that_runs_is_not_noted_as_halted_any_more(tmp_path: Path) -> None:
    target, folder = _target(tmp_path, _Machine(refuses=False))
    folder.note_halted(BOOT)
    assert asyncio.run(target.resume()) == 1.0
    assert not folder.halted.exists()
