"""Hold points: where tests make a handover wait, so that a fault hits it in a sub-step that is known.

Every step of both engines is one (`hold_points` names them; they come from the step tables, so a new step has one at once): the
handover waits before the step's actions are performed. A test makes the folder `hold` in a host's state folder and in it an empty
file, named by the point (`source-cut`: every VM) or by point and VM (`source-cut@vm-6a3f30e7b1cd`). A handover that gets there
makes `FILE.reached` beside it and waits until the file is gone or `HOLD_S_MAX` have passed. Where there is no such folder when a
handover's ports are made, they get no gate and nothing here runs.

==================  ==========================================================================================
source-planned      the agent has been asked for the move, nothing has begun
source-STEP         before the actions of that `SourceStep`; `source-undo`: before each undoing action
target-reserved     room is kept, the machine is about to be started
target-started      the cut has arrived, and is not accepted yet
target-STEP         before the actions of that `TargetStep`
==================  ==========================================================================================
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TypeVar

import msgspec

from architect.migration.source_ports import SourcePorts
from architect.migration.source_steps import SourceStep
from architect.migration.target_engine import TargetStep
from architect.migration.target_ports import TargetPorts
from architect.model.handover_state import HandoverState
from architect.model.ids import VmId

HOLD_S_MAX = 120.0
POLL_S = 0.02
PLANNED = f"source-{HandoverState.PLANNED.value}"

PortsT = TypeVar("PortsT", SourcePorts, TargetPorts)


def hold_points() -> tuple[str, ...]:
    """Every hold point, in the order of the steps."""
    source = tuple(f"source-{step.value}" for step in SourceStep if not step.is_terminal)
    return (PLANNED, *source, *(f"target-{step.value}" for step in TargetStep if not step.is_terminal))


class HoldPoints:
    """The hold points of one host.

    :param state_dir: the host's state folder.
    """

    def __init__(self, state_dir: Path) -> None:
        self._folder = state_dir / "hold"

    def around(self, ports: PortsT, vm: VmId) -> PortsT:
        """The ports, with a gate where tests ask for one."""
        return msgspec.structs.replace(ports, gate=VmGate(self._folder, vm)) if self._folder.is_dir() else ports

    async def wait_planned(self, vm: VmId) -> None:
        """Wait before a move begins, where a test asks for it."""
        if self._folder.is_dir():
            await VmGate(self._folder, vm).wait(PLANNED)


class VmGate:
    """`StepGate`: the hold points of one VM."""

    def __init__(self, folder: Path, vm: VmId) -> None:
        self._folder = folder
        self._vm = vm

    async def wait(self, point: str) -> None:
        """Wait while a file of that point exists, for all VMs or for this one."""
        for path in (self._folder / point, self._folder / f"{point}@{self._vm}"):
            if not path.exists():
                continue
            path.with_name(f"{path.name}.reached").touch()
            for _ in range(int(HOLD_S_MAX / POLL_S)):
                if not path.exists():
                    break
                await asyncio.sleep(POLL_S)
