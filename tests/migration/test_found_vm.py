"""What an agent that starts does with what it finds."""

from __future__ import annotations

import pytest

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


HERE, THERE = "a", "b"
FOUND = [
    # newest record: kind, host | serving | found paused, found running
    (RecordKind.RUN, HERE, False, FoundVerdict.RUN, FoundVerdict.RUN),
    (RecordKind.RUN, HERE, True, FoundVerdict.RUN, FoundVerdict.RUN),
    (RecordKind.ABORT, HERE, False, FoundVerdict.RUN, FoundVerdict.RUN),
    (RecordKind.ABORT, HERE, True, FoundVerdict.RUN, FoundVerdict.RUN),
    (RecordKind.RUN, THERE, False, FoundVerdict.DESTROY, FoundVerdict.DESTROY),
    (RecordKind.RUN, THERE, True, FoundVerdict.SERVE, FoundVerdict.DESTROY),
    (RecordKind.ABORT, THERE, False, FoundVerdict.DESTROY, FoundVerdict.DESTROY),
    (RecordKind.ABORT, THERE, True, FoundVerdict.DESTROY, FoundVerdict.DESTROY),
    (RecordKind.END, HERE, False, FoundVerdict.DESTROY, FoundVerdict.DESTROY),
    (RecordKind.END, HERE, True, FoundVerdict.DESTROY, FoundVerdict.DESTROY),
    (RecordKind.END, THERE, False, FoundVerdict.DESTROY, FoundVerdict.DESTROY),
    (RecordKind.END, THERE, True, FoundVerdict.DESTROY, FoundVerdict.DESTROY),
]


@pytest.mark.parametrize(("kind", "host", "is_serving", "paused", "running"), FOUND)
def test_every_record_decides_what_becomes_of_a_vm_that_is_found(
    kind: RecordKind, host: str, is_serving: bool, paused: FoundVerdict, running: FoundVerdict
) -> None:
    assert resolve_found_paused(A, record(host, kind), is_serving=is_serving) is paused
    assert resolve_found_running(A, record(host, kind)) is running


def test_no_record_and_no_state_is_left_out() -> None:
    assert {row[:3] for row in FOUND} == {
        (kind, host, is_serving) for kind in RecordKind for host in (HERE, THERE) for is_serving in (True, False)
    }
