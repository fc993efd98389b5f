"""Where the threads of a process stand."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from architect.runtime.thread_places import thread_places

PROGRAM = """
import signal, threading
for _ in range(3):
    threading.Thread(target=signal.pause, daemon=True).start()
print(flush=True)
input()
"""


@pytest.fixture
def program() -> Iterator[subprocess.Popen[str]]:
    call = (sys.executable, "-c", PROGRAM)
    with subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_threads_are_named_with_the_function_that_they_stand_in(program: subprocess.Popen[str]) -> None:
    program.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, program.pid, os.WSTOPPED)

    assert thread_places(program.pid) == "python: do_signal_stop (4)"


def test_a_process_that_is_gone_is_said_to_be(program: subprocess.Popen[str]) -> None:
    program.kill()
    program.wait()

    assert thread_places(program.pid) == "cannot be seen (No such file or directory)"
