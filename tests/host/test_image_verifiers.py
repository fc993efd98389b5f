"""The memory and the disk verifier find what is wrong, and name it: damage is done to them from outside while they run."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from architect.testing.sample_images import VERIFIER_SOURCES
from architect.testing.sample_programs import compile_static

pytestmark = pytest.mark.host

PAGE = 4096
COUNT = 256


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verifiers")
    for name in ("memory", "disk"):
        path = folder / name
        path.write_bytes(compile_static(name, (VERIFIER_SOURCES / f"{name}.c", VERIFIER_SOURCES / "pattern.c")))
        path.chmod(0o755)
    return folder


@pytest.fixture
def memory(programs: Path) -> Iterator[subprocess.Popen[str]]:
    """A memory verifier of 1 MiB that only reads, past its first line."""
    words = [str(programs / "memory"), "--size-mib", "1", "--rate-mib", "0", "--sweep-mib", "5"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("memory-verify: seconds=0 pages=256")
        yield process
        process.kill()


def pages_at(process: subprocess.Popen[str]) -> int:
    """Where the verifier's pages are: the mapping of exactly their size."""
    for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines():
        first, last = (int(word, 16) for word in line.split()[0].split("-"))
        if last - first >= COUNT * PAGE and "rw-p" in line and "[" not in line:
            return first
    raise AssertionError("no mapping")


def damage(process: subprocess.Popen[str], page: int, offset: int, data: bytes) -> None:
    with Path(f"/proc/{process.pid}/mem").open("r+b", buffering=0) as file:
        file.seek(pages_at(process) + page * PAGE + offset)
        file.write(data)


def read_page(process: subprocess.Popen[str], page: int) -> bytes:
    with Path(f"/proc/{process.pid}/mem").open("rb", buffering=0) as file:
        file.seek(pages_at(process) + page * PAGE)
        return file.read(PAGE)


def failure(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 1
    return output.splitlines()[-1]


def test_a_lost_page_is_named(memory: subprocess.Popen[str]) -> None:
    damage(memory, 17, 0, bytes(PAGE))
    assert failure(memory).startswith("memory-verify: FAILED page=17 verdict=lost expected_version=0")


def test_a_torn_page_is_named(memory: subprocess.Popen[str]) -> None:
    damage(memory, 18, 2048, read_page(memory, 19)[2048:])
    assert "FAILED page=18 verdict=torn" in failure(memory)


def test_a_single_bit_is_enough(memory: subprocess.Popen[str]) -> None:
    damage(memory, 255, 4095, bytes([read_page(memory, 255)[-1] ^ 1]))
    assert "FAILED page=255 verdict=torn" in failure(memory)


def test_a_page_in_the_place_of_another_is_named(memory: subprocess.Popen[str]) -> None:
    damage(memory, 20, 0, read_page(memory, 21))
    assert "FAILED page=20 verdict=misplaced" in failure(memory) and "found_page=21"


def test_an_earlier_state_of_a_page_is_named(programs: Path) -> None:
    words = [str(programs / "memory"), "--size-mib", "1", "--rate-mib", "5", "--sweep-mib", "1", "--hot-percent", "100"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        earlier = read_page(process, 3)
        while read_page(process, 3)[8:16] == earlier[8:16]:
            time.sleep(0.01)
        damage(process, 3, 0, earlier)
        assert "FAILED page=3 verdict=stale" in failure(process)


@pytest.mark.parametrize(("offset", "verdict"), [(0, "lost"), (512, "torn")])
def test_a_damaged_block_is_named(programs: Path, tmp_path: Path, offset: int, verdict: str) -> None:
    file = tmp_path / "data"
    words = [str(programs / "disk"), "--path", str(file), "--size-mib", "1", "--rate-mib", "0", "--sweep-mib", "5"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "blocks=256" in process.stdout.readline()
        with file.open("r+b", buffering=0) as opened:
            opened.seek(33 * PAGE + offset)
            opened.write(bytes(PAGE - offset))
        assert f"FAILED block=33 verdict={verdict}" in failure(process)


def test_undamaged_they_go_on_and_end_well(programs: Path, tmp_path: Path) -> None:
    for words in (["memory", "--rate-mib", "50"], ["disk", "--path", str(tmp_path / "data"), "--size-mib", "2", "--fsync", "1"]):
        command = [str(programs / words[0]), *words[1:], "--seconds", "1"]
        output = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        assert "seconds=1 " in output.splitlines()[-1] and "errors=0" in output.splitlines()[-1]


def test_an_unknown_option_is_refused(programs: Path) -> None:
    for words in (["--size", "1"], ["--size-mib", "x"], ["--size-mib"]):
        assert subprocess.run([str(programs / "memory"), *words], capture_output=True, timeout=20).returncode == 2
