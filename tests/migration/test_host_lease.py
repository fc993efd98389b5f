"""A host's lease: what renews it, when it is over, and that it never lasts longer here than for whoever answered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from architect.migration.host_lease import (
    DRIFT,
    TRANSITIONS,
    HostLease,
    LeaseEvent,
    LeaseState,
    Reading,
    after_contact,
    after_look,
    elapsed_s,
    read_clocks,
)

LENGTH_S = 15.0
LAST_S = LENGTH_S * (1 - DRIFT)


def at(seconds: float, wall_s: float | None = None) -> Reading:
    return Reading(seconds, 1e9 + (seconds if wall_s is None else wall_s))


def held(asked_s: float = 0.0) -> HostLease:
    return after_contact(HostLease(LENGTH_S), at(asked_s), at(asked_s + 0.1))


def test_the_table_is_total_and_every_state_is_reached() -> None:
    assert set(TRANSITIONS) == set(LeaseState)
    assert all(set(row) == set(LeaseEvent) for row in TRANSITIONS.values())
    assert {state for row in TRANSITIONS.values() for state in row.values()} == set(LeaseState)


def test_there_is_no_lease_before_the_first_contact() -> None:
    assert not after_look(HostLease(LENGTH_S), at(0)).is_held


def test_a_lease_counts_from_the_question_and_not_from_the_answer() -> None:
    lease = after_contact(HostLease(LENGTH_S), at(0), at(10))
    assert after_look(lease, at(LAST_S - 0.01)).is_held
    assert not after_look(lease, at(LAST_S)).is_held


def test_an_answer_that_took_longer_than_the_lease_renews_nothing() -> None:
    assert not after_contact(HostLease(LENGTH_S), at(0), at(LENGTH_S)).is_held
    assert after_contact(held(10), at(0), at(LENGTH_S)).is_held, "nor does it end one that others have renewed"


def test_an_older_question_does_not_shorten_the_lease() -> None:
    lease = after_contact(held(10), at(5), at(11))
    assert after_look(lease, at(10 + LAST_S - 0.01)).is_held


@pytest.mark.parametrize("thawed", [at(40), at(1, wall_s=40)], ids=["suspended", "paused by its hypervisor"])
def test_time_that_was_frozen_counts_by_whichever_clock_saw_it(thawed: Reading) -> None:
    assert not after_look(held(), thawed).is_held


def test_a_date_set_back_does_not_lengthen_the_lease() -> None:
    assert not after_look(held(), at(LENGTH_S, wall_s=-1000)).is_held


def test_a_contact_after_the_end_is_a_new_lease() -> None:
    lease = after_look(held(), at(100))
    assert not lease.is_held
    assert after_contact(lease, at(100), at(100.1)).is_held


@given(st.lists(st.tuples(st.sampled_from(["contact", "look"]), st.floats(0, 20), st.floats(0, 20)), max_size=30))
def test_whatever_happens_a_held_lease_was_asked_for_less_than_its_length_ago(events: list[tuple[str, float, float]]) -> None:
    lease, now_s = HostLease(LENGTH_S), 0.0
    asked: list[float] = []
    for kind, pause_s, answer_s in events:
        now_s += pause_s
        if kind == "contact":
            asked.append(now_s)
            now_s += answer_s
            lease = after_contact(lease, at(asked[-1]), at(now_s))
        else:
            lease = after_look(lease, at(now_s))
        assert not lease.is_held or now_s - max(asked) < LENGTH_S


def test_the_machines_clocks_go_on() -> None:
    before = read_clocks()
    assert elapsed_s(before, read_clocks()) >= 0
