"""An agent is started again by its supervisor when it dies: what it loads first is time in which nobody looks after its VMs."""

from __future__ import annotations

import subprocess
import sys


def test_an_agent_does_not_load_what_only_memory_processes_need() -> None:
    code = "import sys, architect.agent.main; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "architect.silo.tracker", "architect.silo.memory_main"} & set(loaded)
