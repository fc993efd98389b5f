"""What an agent that starts does with what it finds."""

from __future__ import annotations

from architect.migration.found_vm import FoundVerdict, resolve_found_paused, resolve_found_running
from architect.model.ids import HostName
from architect.model.ownership import RecordKind
from tests.migration.handover_values import record

A = HostName("a")


def test_a_paused_vm_whose_record_names_this_host_runs_again() -> None:
    assert resolve_found_paused(A, record("a", RecordKind.ABORT), is_serving=False) is FoundVerdict.RUN
    assert resolve_found_paused(A, record("a"), is_serving=False) is FoundVerdict.RUN


def test_a_paused_vm_that_another_host_owns_is_destroyed() -> None:
    assert resolve_found_paused(A, record("b"), is_serving=False) is FoundVerdict.DESTROY


def test_a_paused_vm_whose_pages_another_host_still_needs_serves_them() -> None:
    assert resolve_found_paused(A, record("b"), is_serving=True) is FoundVerdict.SERVE


def test_an_ended_vm_is_destroyed_wherever_it_is() -> None:
    assert resolve_found_paused(A, record("a", RecordKind.END), is_serving=False) is FoundVerdict.DESTROY
    assert resolve_found_running(A, record("a", RecordKind.END)) is FoundVerdict.DESTROY


def test_a_running_vm_runs_on_unless_the_log_says_that_it_is_anothers() -> None:
    assert resolve_found_running(A, record("a")) is FoundVerdict.RUN
    assert resolve_found_running(A, None) is FoundVerdict.RUN
    assert resolve_found_running(A, record("b")) is FoundVerdict.DESTROY
