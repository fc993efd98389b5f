"""Hold points: where tests make a handover wait, so that a fault hits it in a state that is known.

A test makes the folder `hold` in a host's state folder and in it an empty file named by a step below. A handover that gets to that
step makes `STEP.reached` beside it and waits until the file is gone, `HOLD_S_MAX` have passed, or the step's own deadline ends
it. Where there is no such folder when a handover's ports are made, its ports are not wrapped and nothing here runs.

=================  ============================================================================================
source-precopy     all memory has been copied once, the VM runs
source-paused      the VM stands; nothing of its last state has been sent
source-cut         the last state is saved, the memory's last cut is next; the target knows nothing of it
source-serving     post-copy: the source is about to send the rest
target-cut         the target has the last state, and has not loaded it
target-loaded      everything is loaded, the claim is next
target-claimed     the VM is the target's by record, and does not run yet
target-filling     post-copy: the VM runs at the target, pages are missing
target-disk        post-copy: the whole disk is at the target
=================  ============================================================================================
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from architect.migration.source_ports import SourcePorts
from architect.migration.target_ports import TargetPorts

HOLD_S_MAX = 120.0
POLL_S = 0.02

BEFORE_SOURCE_MEMORY = {"cut": "source-cut", "serve_until_done": "source-serving"}
AFTER_SOURCE_MEMORY = {"bulk": "source-precopy"}
AFTER_SOURCE_MACHINE = {"pause": "source-paused"}
BEFORE_TARGET_MEMORY = {"apply_cut": "target-cut", "wait_all_present": "target-filling"}
AFTER_TARGET_MACHINE = {"load_device_state": "target-loaded", "wait_disk_present": "target-disk"}
BEFORE_TARGET_MACHINE = {"resume": "target-claimed"}

PortsT = TypeVar("PortsT", SourcePorts, TargetPorts)


class HoldPoints:
    """The hold points of one host.

    :param state_dir: the host's state folder.
    """

    def __init__(self, state_dir: Path) -> None:
        self._folder = state_dir / "hold"

    def around(self, ports: PortsT) -> PortsT:
        """The ports, made to wait at their steps where a test asks for it."""
        if not self._folder.is_dir():
            return ports
        if isinstance(ports, SourcePorts):
            machine: Any = _Held(self, ports.machine, {}, AFTER_SOURCE_MACHINE)
            memory: Any = _Held(self, ports.memory, BEFORE_SOURCE_MEMORY, AFTER_SOURCE_MEMORY)
        else:
            machine = _Held(self, ports.machine, BEFORE_TARGET_MACHINE, AFTER_TARGET_MACHINE)
            memory = _Held(self, ports.memory, BEFORE_TARGET_MEMORY, {})
        return msgspec.structs.replace(ports, machine=machine, memory=memory)

    async def wait(self, step: str) -> None:
        """Wait while the step's file exists."""
        path = self._folder / step
        if not path.exists():
            return
        (self._folder / f"{step}.reached").touch()
        for _ in range(int(HOLD_S_MAX / POLL_S)):
            if not path.exists():
                return
            await asyncio.sleep(POLL_S)


class _Held:
    """A port whose named calls wait, before or after they were carried out."""

    def __init__(self, points: HoldPoints, port: object, before: Mapping[str, str], after: Mapping[str, str]) -> None:
        self._points = points
        self._port = port
        self._before = before
        self._after = after

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._port, name)
        before, after = self._before.get(name), self._after.get(name)
        if before is None and after is None:
            return call

        async def held(*arguments: Any, **named: Any) -> Any:
            if before is not None:
                await self._points.wait(before)
            result = await call(*arguments, **named)
            if after is not None:
                await self._points.wait(after)
            return result

        return held
