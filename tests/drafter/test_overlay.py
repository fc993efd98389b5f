"""Overlay files, made by the real qemu-img."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from architect.drafter.overlay import allocated_bytes, create_overlay, grow_overlay
from architect.errors import HostError

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")


def info(path: Path) -> dict[str, object]:
    done = subprocess.run(["qemu-img", "info", "--output=json", str(path)], capture_output=True, check=True)
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_an_overlay_is_empty_private_and_says_nothing_of_a_base(tmp_path: Path) -> None:
    path = tmp_path / "overlay.qcow2"
    path.write_text("what was there before")
    asyncio.run(create_overlay(path, 8 << 30))
    found = info(path)
    assert found["virtual-size"] == 8 << 30
    assert found["cluster-size"] == 65536
    assert "backing-filename" not in found
    assert path.stat().st_mode & 0o777 == 0o600
    assert allocated_bytes(path) < 1 << 20


def test_an_overlay_grows_and_growing_twice_is_growing_once(tmp_path: Path) -> None:
    path = tmp_path / "overlay.qcow2"
    asyncio.run(create_overlay(path, 1 << 20))
    for _ in range(2):
        asyncio.run(grow_overlay(path, 1 << 30))
        assert info(path)["virtual-size"] == 1 << 30


def test_a_failure_names_the_file_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="overlay"):
        asyncio.run(create_overlay(tmp_path / "missing" / "overlay.qcow2", 1 << 20))
    with pytest.raises(HostError):
        asyncio.run(create_overlay(tmp_path / "overlay.qcow2", 1 << 62))
    assert not (tmp_path / "overlay.qcow2").exists()
    with pytest.raises(HostError):
        asyncio.run(grow_overlay(tmp_path / "none.qcow2", 1 << 20))
