"""Runs the programs that images are made with (skopeo, umoci, mke2fs, debugfs): arguments in, output out, failures as values.

A tool that fails raises `ToolFailedError` with the last line it wrote; the caller maps that to what it means for the image. No tool
outlives its caller: on a deadline or a cancellation its whole process group is killed and waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import signal
from collections.abc import Mapping
from pathlib import Path

import msgspec

from architect.errors import CapacityError, HostError

OUTPUT_BYTES_MAX = 16 << 20
_KILL_WAIT_S = 5.0
_NO_SPACE = re.compile(r"no space left on device|disk quota exceeded", re.IGNORECASE)
_GO_MESSAGE = re.compile(r'\bmsg="((?:[^"\\]|\\.)*)"')


class ToolFailedError(HostError):
    """A tool ended with an error. `message` is the last line that it wrote, without the tool's own decoration."""

    code = "tool-failed"

    def __init__(self, tool: str, thing: str, message: str) -> None:
        super().__init__(thing, f"{tool}: {message}", f"see what {tool} says of it when you run it by hand")
        self.tool = tool
        self.message = message


class ToolCall(msgspec.Struct, frozen=True):
    """One run of a tool. `thing` is what errors name; `cwd` is where relative paths in the arguments start."""

    tool: str
    arguments: tuple[str, ...]
    thing: str
    deadline_s: float
    cwd: Path
    env: Mapping[str, str] = {}
    stdin: bytes = b""


async def run_tool(call: ToolCall) -> bytes:
    """What the tool wrote to its standard output.

    Raises:
        HostError: the tool is not installed, or did not end before the deadline.
        CapacityError: the disk is full.
        ToolFailedError: the tool failed for another reason.
    """
    process = await _start(call)
    try:
        async with asyncio.timeout(call.deadline_s):
            output, errors = await process.communicate(call.stdin)
    except BaseException as error:
        await asyncio.shield(_kill(process))
        if not isinstance(error, TimeoutError):
            raise
        cause = f"{call.tool} did not end within {call.deadline_s:.0f} s"
        raise HostError(call.thing, cause, "look at this host's load and disk, then try again") from error
    if process.returncode != 0:
        raise _failure(call, process.returncode, errors)
    return output


async def _start(call: ToolCall) -> asyncio.subprocess.Process:
    """The running tool. Its start is not cancelled half-way: asyncio would kill the tool alone and then wait for its pipes, which
    the tool's children hold open (CPython 3.11, base_subprocess)."""
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            call.tool,
            *call.arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=call.cwd,
            env=os.environ | {"LC_ALL": "C.UTF-8"} | dict(call.env),
            start_new_session=True,
        )
    )
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        with contextlib.suppress(OSError):
            await asyncio.shield(_kill(await starting))
        raise
    except FileNotFoundError as error:
        raise HostError(f"program {call.tool}", "not installed on this host", "install it with tools/packages.sh") from error
    except OSError as error:
        raise map_os_error(error, f"program {call.tool}", call.cwd) from error


async def _kill(process: asyncio.subprocess.Process) -> None:
    """Kill the tool's process group, and reap the tool."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), _KILL_WAIT_S)


def _failure(call: ToolCall, status: int | None, errors: bytes) -> HostError | CapacityError:
    text = errors.decode(errors="replace")
    if _NO_SPACE.search(text):
        return disk_full(call.thing, call.cwd)
    return ToolFailedError(call.tool, call.thing, last_message(text) or f"ended with status {status} and no message")


def disk_full(thing: str, where: Path) -> CapacityError:
    """The error for a disk without room."""
    return CapacityError(thing, f"no room on the disk that holds {where}", "free some space there, then try again")


def map_os_error(error: OSError, thing: str, where: Path) -> HostError | CapacityError:
    """The typed error for an operating system's refusal while images are made or stored under `where`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full(thing, where)
    return HostError(thing, str(error), f"check {where}, its owner and its file system")


def last_message(text: str) -> str:
    """The last line that says something, freed of the decoration of logrus (skopeo) and of umoci."""
    lines = [line.strip().lstrip("•⨯").strip() for line in text.splitlines()]
    line = next((line for line in reversed(lines) if line), "")
    match = _GO_MESSAGE.search(line)
    return match[1].replace('\\"', '"') if match else line
