"""The probe against this machine's own /dev/kvm, whatever it is."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from architect.pvm.accelerator import AcceleratorKind, detect_accelerator

pytestmark = [pytest.mark.host, pytest.mark.skipif(not os.path.exists("/dev/kvm"), reason="no /dev/kvm")]


def test_the_device_is_judged_by_what_runs_in_it_and_the_judgement_says_why(tmp_path: Path) -> None:
    accelerator = asyncio.run(detect_accelerator(tmp_path))
    if accelerator.kind is AcceleratorKind.KVM:
        assert "runs kernel code" in accelerator.reason
    else:
        assert accelerator.reason.startswith("/dev/kvm")
        assert "status" not in accelerator.reason  # the probe itself did not break
