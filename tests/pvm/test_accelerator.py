"""KVM is chosen only if code in it ran as fast, and went where, it should."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from architect.pvm.accelerator import LOOP_NS_MAX, Accelerator, AcceleratorKind, detect_accelerator, judge
from architect.pvm.kvm_probe import KvmProbe, probe_kvm


def test_a_fast_loop_and_a_system_call_that_arrives_mean_kvm() -> None:
    assert judge(KvmProbe(1.6, True)).kind is AcceleratorKind.KVM


@pytest.mark.parametrize(
    ("probe", "word"),
    [
        (KvmProbe(LOOP_NS_MAX + 1, True), "emulates"),
        (KvmProbe(1100.0, False), "emulates"),
        (KvmProbe(1.6, False), "SYSCALL"),
        (KvmProbe(error="Permission denied"), "Permission denied"),
    ],
)
def test_everything_else_means_tcg_with_the_reason_by_name(probe: KvmProbe, word: str) -> None:
    accelerator = judge(probe)
    assert accelerator.kind is AcceleratorKind.TCG
    assert word in accelerator.reason


def test_a_missing_device_means_tcg(tmp_path: Path) -> None:
    accelerator = asyncio.run(detect_accelerator(tmp_path, device=str(tmp_path / "kvm")))
    assert accelerator.kind is AcceleratorKind.TCG
    assert "there is none" in accelerator.reason


def test_a_device_that_is_no_kvm_is_an_error_of_the_probe_and_not_an_exception() -> None:
    assert "ioctl" in probe_kvm("/dev/null").error


def test_the_answer_is_kept_for_this_boot_only(tmp_path: Path) -> None:
    device = str(tmp_path / "kvm")
    asyncio.run(detect_accelerator(tmp_path, device=device))
    kept_file = tmp_path / "accelerator.json"
    kept = msgspec.json.decode(kept_file.read_bytes())
    kept["accelerator"]["reason"] = "kept"
    kept_file.write_bytes(msgspec.json.encode(kept))
    assert asyncio.run(detect_accelerator(tmp_path, device=device)).reason == "kept"
    kept["boot_id"] = "another"
    kept_file.write_bytes(msgspec.json.encode(kept))
    assert asyncio.run(detect_accelerator(tmp_path, device=device)).reason != "kept"


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\x00", b"[1,2]"])
def test_a_damaged_memory_is_asked_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "accelerator.json").write_bytes(content)
    answer = asyncio.run(detect_accelerator(tmp_path, device=str(tmp_path / "kvm")))
    assert answer == Accelerator(AcceleratorKind.TCG, answer.reason)


def test_a_cache_that_cannot_be_written_only_costs_the_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert asyncio.run(detect_accelerator(tmp_path / "file", device=str(tmp_path / "kvm"))).kind is AcceleratorKind.TCG
