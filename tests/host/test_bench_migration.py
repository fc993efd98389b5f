"""The migration benchmark at its smallest: every engine moves a real VM once, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from bench.results import DEFAULT_ENGINES, Cell, Document

pytestmark = [pytest.mark.host, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
CELL = Cell(256, 20, 5)
QUICKEST = ("--quick", "--cells", str(CELL))


def command(out: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "bench.main", "migration", "--out", str(out), *words]


def test_every_engine_moves_the_vm_with_its_disk_and_both_stay_good(tmp_path: Path) -> None:
    out = tmp_path / "migration.json"
    done = subprocess.run(command(out, *QUICKEST), cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    document = msgspec.json.decode(out.read_bytes(), type=Document)
    assert [row.engine for row in document.rows] == list(DEFAULT_ENGINES)
    assert [run.error for run in document.raw] == [""] * len(DEFAULT_ENGINES), done.stdout
    assert {(row.storage, row.disk_mib_s) for row in document.rows} == {("moved", CELL.disk_mib_s)}
    for run in document.raw:
        assert run.move is not None and run.gap is not None
        assert run.gap.gap_ms >= run.move.downtime_ms / 2 > 0, "who is paused does not answer"
        assert run.gap.sent > 1000
        assert run.move.bytes > 164 << 20, "the verifiers' memory and disk were moved"
        assert run.before is not None and run.during is not None
        assert run.before.memory_mib_s > 0
    assert document.machine.cores == len(os.sched_getaffinity(0))
    assert [setup.engine for setup in document.setups] == list(DEFAULT_ENGINES[1:])
    assert all("pause-before-switchover" in setup.capabilities for setup in document.setups)
    assert all(engine.value in done.stdout for engine in DEFAULT_ENGINES)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_writes_what_it_has_and_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "migration.json"
    process = subprocess.Popen(command(out, *QUICKEST), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "starting its VMs" in line:
            break
    time.sleep(3)
    process.send_signal(number)
    assert process.wait(120) == 130
    process.stdout.close()
    assert out.exists()
    assert not list(Path("/run/netns").glob("archbench*")), "conftest sees to the rest"
