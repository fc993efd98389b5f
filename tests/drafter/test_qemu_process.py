"""Who a QEMU is, and whether it still runs: told of any process that plays it."""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from architect.drafter.qemu_process import QemuProcess, find_process, find_unrecorded, identity_of
from architect.errors import HostError, NotFoundError
from tests.open_files import no_more_files

SELECT_MAX = 1024
PATIENCE_S = 20.0
MAIN_THREAD_ENDS = """
import ctypes, platform, sys, threading
threading.Thread(target=sys.stdin.read).start()
number = {"x86_64": 60, "aarch64": 93}[platform.machine()]  # exit(2), of this thread alone
print("ends", flush=True)
ctypes.CDLL(None).syscall(number, 0)
"""


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as child:
        yield child
        child.kill()


def test_a_process_is_found_by_pid_start_and_boot_together(stranger: subprocess.Popen[bytes]) -> None:
    identity = identity_of(stranger.pid)
    find_process(identity).close()
    for wrong in ({"start_ticks": identity.start_ticks - 1}, {"boot_id": "another"}):
        with pytest.raises(NotFoundError, match="it has ended"):
            find_process(msgspec.structs.replace(identity, **wrong))


def test_a_pid_that_was_given_to_a_thread_of_another_process_is_no_qemu() -> None:
    leave = threading.Event()
    thread = threading.Thread(target=leave.wait)
    thread.start()
    try:
        assert thread.native_id is not None
        with pytest.raises(NotFoundError, match="it has ended"):
            find_process(identity_of(thread.native_id))
    finally:
        leave.set()
        thread.join()


def test_a_process_that_cannot_be_looked_at_is_not_called_ended(stranger: subprocess.Popen[bytes], tmp_path: Path) -> None:
    identity = identity_of(stranger.pid)
    with no_more_files():
        with pytest.raises(HostError, match="Too many open files"):
            find_process(identity)
        with pytest.raises(HostError, match="Too many open files"):
            find_unrecorded(tmp_path)
    find_process(identity).close()
    assert find_unrecorded(tmp_path) is None


def test_a_process_is_seen_to_run_and_to_end_by_a_descriptor_of_any_number(stranger: subprocess.Popen[bytes]) -> None:
    pidfd = os.pidfd_open(stranger.pid)
    process = QemuProcess(identity_of(stranger.pid), fcntl.fcntl(pidfd, fcntl.F_DUPFD_CLOEXEC, SELECT_MAX), None)
    os.close(pidfd)
    try:
        assert process.is_running
        process.kill()
        asyncio.run(process.wait(PATIENCE_S))
        assert not process.is_running
    finally:
        process.close()


def test_a_process_whose_main_thread_alone_has_ended_is_found_and_killed() -> None:
    """It is a zombie by its pid, and may still write to the VM's disk."""
    call = [sys.executable, "-c", MAIN_THREAD_ENDS]
    with subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline() == b"ends\n"
        process = find_process(identity_of(child.pid))
        try:
            asyncio.run(_until_ending(process))
            process.close()
            process = find_process(process.identity)
            assert process.is_running and process.is_ending
            process.kill()
            asyncio.run(process.wait(PATIENCE_S))
            assert not process.is_running
        finally:
            process.close()


async def _until_ending(process: QemuProcess) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not process.is_ending:  # noqa: ASYNC110 nothing tells of it
            await asyncio.sleep(0.005)
