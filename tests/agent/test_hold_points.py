"""Hold points: nothing where no test asks for one; where one does, the handover waits until the file is gone."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from architect.agent.hold_points import HoldPoints, hold_points
from architect.migration.source_ports import SourcePorts
from architect.migration.source_steps import SourceStep
from architect.migration.target_engine import TargetStep
from architect.model.ids import VmId

VM, OTHER = VmId("vm-000000000001"), VmId("vm-000000000002")


def ports() -> SourcePorts:
    nothing: Any = None
    return SourcePorts(nothing, nothing, nothing, nothing, nothing, nothing, nothing)


def test_ports_get_no_gate_where_there_is_no_folder(tmp_path: Path) -> None:
    ungated = ports()
    assert HoldPoints(tmp_path).around(ungated, VM) is ungated
    assert ungated.gate is None


def test_every_step_that_is_no_end_is_a_hold_point() -> None:
    steps = [f"source-{step.value}" for step in SourceStep if not step.is_terminal]
    steps += [f"target-{step.value}" for step in TargetStep if not step.is_terminal]
    assert set(hold_points()) == {"source-planned", *steps}


@pytest.mark.parametrize("name", ["source-cut", f"source-cut@{VM}"])
def test_a_handover_waits_at_its_point_until_the_file_is_gone(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "hold"
    folder.mkdir()
    gate, other = (HoldPoints(tmp_path).around(ports(), vm).gate for vm in (VM, OTHER))
    assert gate is not None and other is not None

    async def scenario() -> None:
        (folder / name).touch()
        waiting = asyncio.create_task(gate.wait("source-cut"))
        while not (folder / f"{name}.reached").exists():  # noqa: ASYNC110 all there is
            await asyncio.sleep(0)
        await gate.wait("source-commit")
        if "@" in name:
            await other.wait("source-cut")
        assert not waiting.done()
        (folder / name).unlink()
        await waiting

    asyncio.run(scenario())
