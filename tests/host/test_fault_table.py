"""The fault matrix lacks no sub-step, no victim and no phase, and its page says what the tests expect."""

from __future__ import annotations

import itertools

from architect.agent.hold_points import hold_points
from architect.model.handover_state import TRANSITIONS
from tests.host.fault_page import PAGE, filled
from tests.host.fault_strikes import STRIKES
from tests.host.fault_table import (
    COLUMNS,
    EXCEPTIONS,
    EXPECTED,
    PARTS,
    PHASES,
    SOAKED,
    Stage,
    Victim,
    cells,
    complete,
    covering,
)


def test_every_hold_point_is_a_column() -> None:
    assert {column.point for column in COLUMNS} == set(hold_points())


def test_every_state_that_can_be_left_is_a_phase_with_columns() -> None:
    assert set(PHASES) == {state for state, events in TRANSITIONS.items() if events}


def test_every_victim_has_a_strike_and_an_expectation_for_each_stage() -> None:
    assert set(EXPECTED) == set(STRIKES) == set(Victim)
    assert all(set(row) == set(Stage) for row in EXPECTED.values())


def test_exceptions_are_of_cells_that_exist_and_differ_from_their_stage() -> None:
    columns = {column.name: column for column in COLUMNS}
    for (victim, name), outcomes in EXCEPTIONS.items():
        assert outcomes != EXPECTED[victim][columns[name].stage], name


def test_the_part_for_every_run_has_each_stage_and_each_victim_in_each_part_of_a_move_where_it_exists() -> None:
    chosen = [cell for strike in covering() for cell in strike.cells]
    assert {column.stage for _, column in chosen} == set(Stage)
    assert {column.phase for _, column in chosen} == set(PHASES)
    for victim, part in itertools.product(Victim, PARTS):
        exists = victim not in SOAKED and any(column.stage in part for column in cells(victim))
        assert exists == any(of is victim and column.stage in part for of, column in chosen), (victim, part)


def test_the_complete_part_has_every_cell_once() -> None:
    chosen = [cell for strike in complete(8) for cell in strike.cells]
    assert len(chosen) == len(set(chosen)) == sum(len(cells(victim)) for victim in Victim)
    assert all(len(strike.cells) <= 8 for strike in complete(8))


def test_the_page_has_the_tables_of_the_code() -> None:
    page = PAGE.read_text()
    assert page == filled(page), "run `python -m tests.host.fault_page`"
