"""Processes are told apart for certain, end when asked to, and are found where they hide."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest

from architect.errors import HostError
from architect.runtime.processes import (
    ProcessIdentity,
    SpawnOptions,
    all_processes,
    command_line,
    has_mark,
    identify_process,
    is_alive,
    is_inside,
    kill_all,
    network_namespace,
    open_pidfd,
    send_signal,
    spawn_process,
    stop_process,
    wait_exit,
)
from tests.open_files import no_more_files

SLEEP = (sys.executable, "-c", "import time; print('here', flush=True); time.sleep(60)")
STUBBORN = (
    sys.executable,
    "-c",
    "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)",
)


def spawn(folder: Path, arguments: tuple[str, ...], **environment: str) -> tuple[ProcessIdentity, subprocess.Popen[bytes]]:
    """Start a process and wait for its first word."""
    options = SpawnOptions(arguments, folder, folder / "log", environment=environment)
    process, child = spawn_process(options)
    while not (folder / "log").read_bytes():
        assert child.poll() is None
        os.sched_yield()
    return process, child


def test_a_process_is_spawned_with_a_session_a_log_and_marks(tmp_path: Path) -> None:
    process, child = spawn(tmp_path, SLEEP, MARK="fabric/host")
    try:
        assert is_alive(process) and process in all_processes()
        assert os.getsid(process.pid) == process.pid
        assert command_line(process) == list(SLEEP)
        assert has_mark(process, ["MARK=fabric/host"]) and has_mark(process, ["MARK=fabric/"])
        assert not has_mark(process, ["MARK=fabric"]) and not has_mark(process, ["MARK=fabric/ho"])
        assert (tmp_path / "log").read_text() == "here\n"
        ours = network_namespace(process)
        assert ours is not None and is_inside(process, [ours]) and not is_inside(process, [])
    finally:
        child.kill()
        child.wait()
    assert not is_alive(process) and command_line(process) == [] and network_namespace(process) is None


def test_a_pid_that_was_given_to_another_process_is_never_hit(tmp_path: Path) -> None:
    process, child = spawn(tmp_path, SLEEP)
    try:
        earlier = msgspec.structs.replace(process, start_ticks=process.start_ticks - 1)
        assert not is_alive(earlier)
        assert open_pidfd(earlier) is None
        assert not send_signal(earlier, signal.SIGKILL)
        asyncio.run(stop_process(earlier, 1))
        assert child.poll() is None
    finally:
        child.kill()
        child.wait()


def test_a_pid_that_was_given_to_a_thread_of_another_process_is_gone() -> None:
    leave = threading.Event()
    thread = threading.Thread(target=leave.wait)
    thread.start()
    try:
        assert thread.native_id is not None
        found = identify_process(thread.native_id)
        assert found is not None, "/proc has threads, too, if one asks for them"
        assert open_pidfd(found) is None and not send_signal(found, signal.SIGKILL)
    finally:
        leave.set()
        thread.join()


def test_a_process_that_cannot_be_looked_at_is_not_called_gone(tmp_path: Path) -> None:
    process, child = spawn(tmp_path, SLEEP)
    try:
        with no_more_files():
            for look in (is_alive, open_pidfd, lambda it: send_signal(it, signal.SIGKILL)):
                with pytest.raises(HostError, match="Too many open files"):
                    look(process)
        assert is_alive(process)
    finally:
        child.kill()
        child.wait()


def test_a_zombie_counts_as_gone(tmp_path: Path) -> None:
    process, child = spawn(tmp_path, SLEEP)
    os.kill(process.pid, signal.SIGKILL)
    asyncio.run(wait_exit(process))
    assert identify_process(process.pid) is None and process not in all_processes()
    assert child.wait() == -signal.SIGKILL


@pytest.mark.parametrize(("arguments", "by"), [(SLEEP, signal.SIGTERM), (STUBBORN, signal.SIGKILL)])
def test_a_process_is_asked_to_end_and_then_made_to(tmp_path: Path, arguments: tuple[str, ...], by: signal.Signals) -> None:
    process, child = spawn(tmp_path, arguments)
    asyncio.run(stop_process(process, 0.3 if by is signal.SIGKILL else 30))
    assert child.wait() == -by
    asyncio.run(stop_process(process, 0.3))


def test_all_that_fit_are_killed_and_nobody_else(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    marked, marked_child = spawn(tmp_path / "a", STUBBORN, ROOM=str(tmp_path))
    other, other_child = spawn(tmp_path / "b", SLEEP)
    try:
        assert kill_all(lambda process: has_mark(process, [f"ROOM={tmp_path}"]), "test") == 1
        assert not is_alive(marked) and is_alive(other)
        assert kill_all(lambda process: has_mark(process, [f"ROOM={tmp_path}"]), "test") == 0
    finally:
        for child in (marked_child, other_child):
            child.kill()
            child.wait()


def test_a_command_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="/no/such/program"):
        spawn_process(SpawnOptions(("/no/such/program",), tmp_path, tmp_path / "log"))


def test_waiting_for_who_is_gone_returns_and_a_cancelled_wait_leaves_the_process_alone(tmp_path: Path) -> None:
    asyncio.run(wait_exit(ProcessIdentity(os.getpid(), 1)))
    process, child = spawn(tmp_path, SLEEP)

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await wait_exit(process)

    asyncio.run(give_up())
    assert is_alive(process)
    child.kill()
    child.wait()
