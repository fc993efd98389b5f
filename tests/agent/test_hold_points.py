"""Hold points: nothing where no test asks for one; where one does, the call waits until the file is gone."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from architect.agent.hold_points import HoldPoints
from architect.migration.source_ports import SourcePorts


class Recorder:
    """A port that notes what is called."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    async def pause(self) -> float:
        self.calls.append("pause")
        return 1.5

    async def cut(self, postcopy: bool) -> bool:
        self.calls.append("cut")
        return postcopy

    async def resume(self) -> None:
        self.calls.append("resume")


def source_ports(machine: Any, memory: Any) -> SourcePorts:
    nothing: Any = None
    return SourcePorts(machine, memory, nothing, nothing, nothing, nothing, nothing)


def test_ports_are_left_as_they_are_where_there_is_no_folder(tmp_path: Path) -> None:
    ports = source_ports(Recorder(), Recorder())
    assert HoldPoints(tmp_path).around(ports) is ports


def test_a_call_waits_after_or_before_it_is_carried_out_until_its_file_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "hold"
    folder.mkdir()
    machine, memory = Recorder(), Recorder()
    ports = HoldPoints(tmp_path).around(source_ports(machine, memory))

    async def scenario() -> None:
        (folder / "source-paused").touch()
        (folder / "source-cut").touch()
        pausing = asyncio.create_task(ports.machine.pause())
        cutting = asyncio.create_task(ports.memory.cut(True))
        while not all((folder / f"{step}.reached").exists() for step in ("source-paused", "source-cut")):  # noqa: ASYNC110 all there is
            await asyncio.sleep(0)
        assert (machine.calls, memory.calls) == (["pause"], [])
        assert not pausing.done() and not cutting.done()
        await ports.machine.resume()
        for step in ("source-paused", "source-cut"):
            (folder / step).unlink()
        assert await pausing == 1.5
        await cutting
        assert (machine.calls, memory.calls) == (["pause", "resume"], ["cut"])

    asyncio.run(scenario())
