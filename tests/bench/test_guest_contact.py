"""What the guest says of its verifiers, and what it has written by that."""

from __future__ import annotations

import pytest

from bench.guest_contact import Report, are_ready, report_of, written
from bench.results import Written

MEMORY = "memory-verify: seconds=3 pages=16384 written=7680 verified=30720 sweeps=1 errors=0"
DISK = "disk-verify: seconds=3 blocks=4096 written=512 flushed=64 verified=1024 sweeps=0 direct=1 errors=0"


def test_a_guest_is_ready_when_each_verifier_has_begun() -> None:
    assert are_ready(MEMORY)
    assert are_ready(f"{MEMORY} | {DISK}")
    assert not are_ready(f"{MEMORY} | ")
    assert not are_ready("")


def test_a_report_has_what_each_verifier_has_written() -> None:
    assert report_of(f"{MEMORY} | {DISK}", 9.0) == Report(9.0, 30.0, 2.0)
    assert report_of(MEMORY, 9.0) == Report(9.0, 30.0, 0.0)


def test_the_rate_is_what_was_written_between_two_reports() -> None:
    assert written(Report(1.0, 10.0, 1.0), Report(3.0, 50.0, 3.0)) == Written(20.0, 1.0)


def test_two_reports_at_one_time_are_no_division_by_zero() -> None:
    assert written(Report(1.0, 10.0, 1.0), Report(1.0, 10.0, 1.0)) == pytest.approx(Written(0.0, 0.0))
