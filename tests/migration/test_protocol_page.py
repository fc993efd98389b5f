"""docs/protocols/migration.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from architect.model.handover_state import TRANSITIONS
from architect.wire.migration_messages import TargetRequest

PAGE = (Path(__file__).parents[2] / "docs/protocols/migration.md").read_text()


def test_the_state_diagram_is_the_table_of_transitions() -> None:
    diagram = PAGE.split("<!-- transitions -->")[1].split("```")[1]
    drawn = set(re.findall(r"^\s*([A-Z]+) --> ([A-Z]+): ([a-z-]+)$", diagram, re.MULTILINE))
    table = {(state.name, following.name, event.value) for state, row in TRANSITIONS.items() for event, following in row.items()}
    assert drawn == table


def test_every_terminal_state_ends_the_diagram() -> None:
    ended = set(re.findall(r"^\s*([A-Z]+) --> \[\*\]$", PAGE, re.MULTILINE))
    assert ended == {state.name for state in TRANSITIONS if state.is_terminal}


def test_every_request_of_the_way_is_on_the_page() -> None:
    ways = {kind.__name__ for kind in get_args(TargetRequest)} - {"Alive", "AskStatus"}
    assert {name for name in ways if name in PAGE} == ways
