"""The handover's table: total over its states, every state reachable, terminal states final."""

from __future__ import annotations

import pytest

from architect.model.handover_state import TRANSITIONS, HandoverEvent, HandoverState
from architect.model.state_machine import IllegalTransitionError, advance


def test_the_table_has_a_row_for_every_state_and_only_terminal_rows_are_empty() -> None:
    assert set(TRANSITIONS) == set(HandoverState)
    for state, row in TRANSITIONS.items():
        assert (not row) == state.is_terminal


def test_every_state_is_reachable_from_planned() -> None:
    seen = {HandoverState.PLANNED}
    while more := {after for state in seen for after in TRANSITIONS[state].values()} - seen:
        seen |= more
    assert seen == set(HandoverState)


@pytest.mark.parametrize("state", HandoverState)
@pytest.mark.parametrize("event", HandoverEvent)
def test_an_event_that_the_row_lacks_raises_and_changes_nothing(state: HandoverState, event: HandoverEvent) -> None:
    if event in TRANSITIONS[state]:
        assert advance(TRANSITIONS, state, event) is TRANSITIONS[state][event]
    else:
        with pytest.raises(IllegalTransitionError, match=state.name):
            advance(TRANSITIONS, state, event)


def test_nothing_fails_after_the_commit() -> None:
    for state in (HandoverState.COMMITTED, HandoverState.POSTCOPY):
        assert HandoverEvent.FAIL not in TRANSITIONS[state]
