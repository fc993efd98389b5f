"""Every sample image boots under TCG with the CPU model of our VMs and does what it is for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.host.guest_machine import REPOSITORY
from tests.host.sample_vm import CHECKS

pytestmark = pytest.mark.host


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_a_sample_image_works_in_a_vm(name: str, tmp_path: Path) -> None:
    command = f'ip link set lo up && exec "{sys.executable}" -m tests.host.sample_vm {name} "{tmp_path}"'
    result = subprocess.run(["unshare", "--net", "sh", "-c", command], cwd=REPOSITORY, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stderr[-6000:]
