"""Following a handover: along the table only, and from reports alone where nobody answers."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from architect.control.handover_track import Ends, settle, steps_to, with_report, with_state
from architect.control.records import MigrationRecord, MoveCause
from architect.control.sighting_index import Sighted
from architect.model.handover_state import TRANSITIONS, HandoverEvent, HandoverState, MigrationMode
from architect.model.ids import HostName, MigrationId, VmId
from architect.model.state_machine import advance
from architect.model.vm_state import VmState
from architect.wire.agent_messages import MigrationReport, VmObservation

MOVE = MigrationId("mig-000000000001")
VM = VmId("vm-000000000001")
HERE = Ends(source_lost=False, target_lost=False, source_gone=False, target_gone=False, unseen_s=0, unseen_s_max=5)
SILENT = Ends(source_lost=True, target_lost=True, source_gone=False, target_gone=False, unseen_s=6, unseen_s_max=5)
BEFORE = (HandoverState.PLANNED, HandoverState.PREPARING, HandoverState.PRECOPY, HandoverState.SWITCHOVER)


def move(state: HandoverState = HandoverState.PLANNED) -> MigrationRecord:
    """A move from a to b, of a VM that was at term 3."""
    return MigrationRecord(
        MOVE, VM, "web", HostName("a"), HostName("b"), MigrationMode.AUTO, False, MoveCause.USER, 3, 100.0, state
    )


def report(state: HandoverState, reason: str = "") -> MigrationReport:
    """What an agent tells of it."""
    return MigrationReport(MOVE, VM, HostName("a"), HostName("b"), MigrationMode.PRECOPY, state, reason)


def at(host: str, term: int, state: VmState = VmState.RUNNING, told: MigrationReport | None = None) -> Sighted:
    """A host that reports the VM."""
    return Sighted(HostName(host), VmObservation(VM, state, term, migration=told))


def test_every_state_has_a_row_and_can_be_reached_from_planned() -> None:
    assert set(TRANSITIONS) == set(HandoverState)
    assert all(steps_to(HandoverState.PLANNED, state) is not None for state in HandoverState)
    assert all(TRANSITIONS[state] == {} for state in HandoverState if state.is_terminal)


@given(st.sampled_from(HandoverState), st.sampled_from(HandoverState))
def test_steps_are_legal_and_lead_where_they_should(start: HandoverState, wanted: HandoverState) -> None:
    steps = steps_to(start, wanted)
    state = start
    for event in steps or ():
        assert isinstance(event, HandoverEvent)
        state = advance(TRANSITIONS, state, event)
    assert steps is None or state is wanted


@given(st.lists(st.sampled_from(HandoverState), max_size=8))
def test_whatever_agents_tell_a_move_never_leaves_its_end_nor_goes_back_before_the_commit(told: list[HandoverState]) -> None:
    record = move()
    for state in told:
        before, record = record, with_report(record, report(state), 200.0)
        if before.state.is_terminal:
            assert record == before
        if before.state in (HandoverState.COMMITTED, HandoverState.POSTCOPY):
            assert record.state not in BEFORE
        assert (record.ended_at_s is not None) == record.state.is_terminal


@pytest.mark.parametrize("state", [*BEFORE, HandoverState.COMMITTED, HandoverState.POSTCOPY])
def test_the_vm_at_the_target_under_a_new_term_and_not_at_the_source_is_the_end(state: HandoverState) -> None:
    assert settle(move(state), [at("b", 4)], HERE, 200.0).state is HandoverState.DONE


def test_the_vm_at_the_target_under_a_new_term_while_the_source_has_it_is_the_commit() -> None:
    settled = settle(move(HandoverState.PRECOPY), [at("a", 3), at("b", 4)], HERE, 200.0)
    assert settled.state is HandoverState.COMMITTED


@pytest.mark.parametrize("state", BEFORE)
def test_a_vm_that_is_still_to_come_is_no_commit_though_an_abort_made_its_term_newer_than_the_one_written_down(
    state: HandoverState,
) -> None:
    arriving = at("b", 4, VmState.MIGRATING)
    assert settle(move(state), [at("a", 4, VmState.MIGRATING), arriving], HERE, 200.0).state is state
    assert settle(move(state), [arriving], SILENT, 200.0).state is HandoverState.FAILED


def test_the_vm_at_the_source_alone_says_nothing() -> None:
    record = move(HandoverState.PRECOPY)
    assert settle(record, [at("a", 3), at("b", 3, VmState.CREATING)], HERE, 200.0) == record


@pytest.mark.parametrize("host", ["a", "b"])
def test_what_an_agent_tells_of_an_ended_move_counts(host: str) -> None:
    told = report(HandoverState.FAILED, "the target has no room")
    settled = settle(move(HandoverState.PRECOPY), [at(host, 3, told=told)], HERE, 200.0)
    assert (settled.state, settled.reason) == (HandoverState.FAILED, "the target has no room")


def test_a_target_that_still_fetches_is_not_done_though_the_source_is_gone() -> None:
    told = report(HandoverState.POSTCOPY)
    settled = settle(move(HandoverState.COMMITTED), [at("b", 4, told=told)], HERE, 200.0)
    assert settled.state is HandoverState.POSTCOPY


def test_a_move_whose_source_is_silent_is_not_done_while_the_target_lacks_something_of_it() -> None:
    silent = msgspec.structs.replace(SILENT, source_gone=True)
    for lacking, state in (("a", HandoverState.POSTCOPY), ("", HandoverState.DONE), ("elsewhere", HandoverState.DONE)):
        seen = msgspec.structs.replace(at("b", 4).observation, fills_from=lacking)
        settled = settle(move(HandoverState.COMMITTED), [Sighted(HostName("b"), seen)], silent, 200.0)
        assert settled.state is state


def test_a_vm_that_the_target_lost_in_postcopy_is_lost() -> None:
    settled = settle(move(HandoverState.POSTCOPY), [at("b", 4, VmState.LOST)], HERE, 200.0)
    assert settled.state is HandoverState.LOST


def test_a_silent_source_fails_a_move_before_its_commit_once_the_target_had_its_time() -> None:
    record = move(HandoverState.PRECOPY)
    silent = msgspec.structs.replace(SILENT, target_lost=False)
    assert settle(record, [], msgspec.structs.replace(silent, unseen_s=4), 200.0) == record
    settled = settle(record, [], silent, 200.0)
    assert (settled.state, settled.reason) == (HandoverState.FAILED, "host a fell silent during the move")


def test_ends_that_are_only_silent_do_not_lose_a_vm_after_the_commit() -> None:
    record = move(HandoverState.COMMITTED)
    assert settle(record, [], SILENT, 200.0) == record


def test_ends_that_are_gone_after_the_commit_lose_the_vm() -> None:
    gone = msgspec.structs.replace(SILENT, source_gone=True, target_gone=True)
    settled = settle(move(HandoverState.COMMITTED), [], gone, 200.0)
    assert (settled.state, settled.reason) == (HandoverState.LOST, "a and b vanished during the move")


def test_a_state_that_no_way_leads_to_changes_nothing() -> None:
    record = move(HandoverState.SWITCHOVER)
    assert with_state(record, HandoverState.PREPARING, 200.0) == record
