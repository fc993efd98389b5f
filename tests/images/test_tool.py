"""Running a tool: its output, its failures, and that nothing of it stays."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from architect.errors import CapacityError, HostError
from architect.images.tool import ToolCall, ToolFailedError, last_message, run_tool


def run(script: str, cwd: Path, deadline_s: float = 20.0, stdin: bytes = b"") -> bytes:
    return asyncio.run(run_tool(ToolCall("sh", ("-c", script), "image x", deadline_s, cwd, stdin=stdin)))


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that is dead and not yet reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_output_comes_back_and_the_input_goes_in(tmp_path: Path) -> None:
    assert run("pwd; cat", tmp_path, stdin=b"hello") == f"{tmp_path}\nhello".encode()


def test_a_failure_carries_the_last_line(tmp_path: Path) -> None:
    with pytest.raises(ToolFailedError, match="sh: the reason") as caught:
        run("echo first >&2; echo '   ⨯ the reason  ' >&2; echo >&2; exit 3", tmp_path)
    assert caught.value.message == "the reason"
    with pytest.raises(ToolFailedError, match="ended with status 3"):
        run("exit 3", tmp_path)


def test_a_full_disk_is_a_matter_of_capacity(tmp_path: Path) -> None:
    with pytest.raises(CapacityError, match="no room on the disk"):
        run("echo 'write x: No space left on device' >&2; exit 1", tmp_path)


def test_a_missing_tool_is_named(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="no-such-tool: not installed"):
        asyncio.run(run_tool(ToolCall("no-such-tool", (), "image x", 1.0, tmp_path)))


def test_a_tool_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="did not end within 0 s"):
        run("sleep 600 & echo $! > child; sleep 600", tmp_path, deadline_s=0.3)
    assert not is_alive(int((tmp_path / "child").read_text()))


def test_a_cancelled_caller_leaves_no_tool(tmp_path: Path) -> None:
    async def cancel() -> None:
        task = asyncio.create_task(run_tool(ToolCall("sh", ("-c", "echo $$ > pid; sleep 600"), "image x", 60.0, tmp_path)))
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():  # noqa: ASYNC110 another process writes it
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert not is_alive(int((tmp_path / "pid").read_text()))


def test_a_caller_cancelled_at_any_step_of_the_start_ends_soon_and_leaves_nothing(tmp_path: Path) -> None:
    async def cancel_after(steps: int) -> None:
        task = asyncio.create_task(run_tool(ToolCall("sh", ("-c", "sleep 600 & sleep 600"), "image x", 60.0, tmp_path)))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 20)

    for steps in range(12):
        asyncio.run(cancel_after(steps))
    assert [path for path in Path("/proc").iterdir() if _works_in(path, tmp_path)] == []


def _works_in(process: Path, directory: Path) -> bool:
    """Whether a process of /proc has `directory` as its working directory; a zombie has none."""
    try:
        return process.name.isdigit() and (process / "cwd").readlink() == directory
    except OSError:
        return False


def test_messages_are_freed_of_decoration() -> None:
    assert last_message('time="x" level=fatal msg="no tag \\"a\\""\n') == 'no tag "a"'
    assert last_message("  • unpacking\n   ⨯ it broke  \n\n") == "it broke"
    assert last_message("") == ""
    assert os.linesep not in last_message("a\nb")
