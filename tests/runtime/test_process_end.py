"""How a process has ended is known by its pidfd, whoever's child it was."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys

import pytest

from architect.runtime.process_end import ending, exit_status, has_ended

SELECT_MAX = 1024
PATIENCE_S = 20.0


def _kernel() -> tuple[int, ...]:
    return tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])


needs_pidfd_info = pytest.mark.skipif(_kernel() < (6, 15), reason="needs Linux 6.15: PIDFD_INFO_EXIT")


@needs_pidfd_info
@pytest.mark.parametrize(("last", "status"), [("sys.exit(3)", 3), ("os.kill(os.getpid(), 9)", -9), ("pass", 0)])
def test_the_status_of_anybodys_child_is_known_once_it_was_reaped(last: str, status: int) -> None:
    program = f"import os, sys; sys.stdin.read(); {last}"
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)
    pidfd = os.pidfd_open(child.pid)
    try:
        assert exit_status(pidfd) is None, "it lives"
        child.communicate()
        assert exit_status(pidfd) == status == child.returncode
    finally:
        os.close(pidfd)


def test_an_end_is_seen_by_a_descriptor_of_any_number() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    pidfd = os.pidfd_open(child.pid)
    high = fcntl.fcntl(pidfd, fcntl.F_DUPFD_CLOEXEC, SELECT_MAX)
    try:
        assert not has_ended(high), "it lives"
        assert child.stdin is not None
        child.stdin.close()
        assert has_ended(high, PATIENCE_S), "and is a zombie"
        child.wait()
        assert has_ended(high) and has_ended(pidfd)
    finally:
        os.close(high)
        os.close(pidfd)


def test_an_end_is_told_in_words() -> None:
    assert ending(-signal.SIGKILL) == "was killed by signal 9 (SIGKILL)"
    assert ending(-99) == "was killed by signal 99"
    assert ending(1) == "ended with exit status 1"
    assert ending(None) == "ended"
    assert ending(1, "no such disk") == "ended with exit status 1 (no such disk)"
    assert ending(-signal.SIGKILL, "all is well") == "was killed by signal 9 (SIGKILL)", (
        "what it said last has nothing to do with it"
    )


def test_nothing_is_known_by_a_descriptor_that_is_no_pidfd() -> None:
    with open(os.devnull, "rb") as file:
        assert exit_status(file.fileno()) is None
