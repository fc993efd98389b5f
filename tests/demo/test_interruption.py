"""Ctrl-C in the demo: the first cancels the work, none cancels the clean-up."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from architect.errors import UnavailableError
from demo.fabric_commands import Fabric
from demo.interruption import interruptible, to_its_end
from demo.main import INTERRUPTED, exit_status

TURNS = 5


async def interrupt() -> None:
    """Ctrl-C, heard."""
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(TURNS):
        await asyncio.sleep(0)


def test_ctrl_c_again_and_again_lets_the_clean_up_end() -> None:
    said: list[str] = []
    done: list[str] = []

    async def clean_up() -> None:
        for _ in range(3):
            await interrupt()
        done.append("cleaned up")

    async def work() -> int:
        with interruptible(said.append, "still at it"):
            try:
                await interrupt()
                done.append("not interrupted")
            finally:
                await to_its_end(clean_up())
        return 0

    assert exit_status(work()) == INTERRUPTED
    assert done == ["cleaned up"]
    assert said == ["interrupted", "still at it", "still at it", "still at it"]


def test_ctrl_c_within_the_last_clean_up_lets_it_end() -> None:
    done: list[str] = []

    async def clean_up() -> None:
        await interrupt()
        done.append("cleaned up")

    async def work() -> int:
        with interruptible(done.append, ""):
            await to_its_end(clean_up())
        return 0

    assert exit_status(work()) == INTERRUPTED
    assert done == ["interrupted", "cleaned up"]


def test_a_command_is_out_of_reach_of_the_terminals_ctrl_c(tmp_path: Path) -> None:
    program = tmp_path / "architect"
    program.write_text('#!/bin/sh\nread -r _ _ _ _ group session _ < /proc/self/stat\necho "[$group, $session, $$]"\n')
    program.chmod(0o755)
    group, session, identity = asyncio.run(Fabric(tmp_path, str(program)).command("host", "ls"))
    assert (group, session) == (identity, identity)


def test_a_fabric_that_does_not_go_names_the_command_that_removes_it(tmp_path: Path) -> None:
    program = tmp_path / "architect"
    program.write_text("#!/bin/sh\necho 'architect: folder x: is busy; see it' >&2\nexit 9\n")
    program.chmod(0o755)
    with pytest.raises(
        Exception, match=f"fabric in {tmp_path}: is not taken apart .*is busy.*`architect --state-dir {tmp_path} down`"
    ):
        asyncio.run(Fabric(tmp_path, str(program)).down())


def test_an_error_out_of_a_task_group_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    async def silent() -> None:
        raise UnavailableError("status", "no answer in 10 s", "see whether the VM runs")

    async def work() -> int:
        async with asyncio.TaskGroup() as outer:
            async with asyncio.TaskGroup() as group:
                group.create_task(silent())
            outer.create_task(silent())
        return 0

    assert exit_status(work()) == UnavailableError.exit_status
    assert capsys.readouterr().err == "demo: status: no answer in 10 s; see whether the VM runs\n"


def test_a_defect_is_not_hidden() -> None:
    async def work() -> int:
        async with asyncio.TaskGroup():
            raise KeyError("a defect")

    with pytest.raises(ExceptionGroup):
        exit_status(work())
