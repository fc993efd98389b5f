"""What a memory process keeps for the next one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from architect.silo.memory_role import MemoryRole
from architect.silo.memory_state import STATE_FILE, IncomingMove, KeptState, keep_state, kept_state, start_time


def test_what_was_kept_is_found_while_that_very_process_runs(tmp_path: Path) -> None:
    state = KeptState(os.getpid(), start_time(os.getpid()), MemoryRole.INCOMING, IncomingMove("s", "127.0.0.1", 5, "root"))
    keep_state(tmp_path, state)
    assert kept_state(tmp_path) == state


def test_another_process_of_the_same_number_a_dead_one_and_garbage_are_nothing(tmp_path: Path) -> None:
    assert kept_state(tmp_path) is None
    keep_state(tmp_path, KeptState(os.getpid(), start_time(os.getpid()) + 1, MemoryRole.FRESH))
    assert kept_state(tmp_path) is None
    (tmp_path / STATE_FILE).write_bytes(b"{")
    assert kept_state(tmp_path) is None
    process = subprocess.Popen(["true"])
    process.wait()
    assert start_time(process.pid) == 0


def test_a_dead_process_that_is_not_reaped_counts_as_none() -> None:
    process = subprocess.Popen(["true"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert start_time(process.pid) == 0
    process.wait()
