"""State machines: an enum of states, an enum of events, one table, one pure step.

`advance` is the only way a state changes; an event that the table does not have for a state raises and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TypeVar

from architect.errors import InternalError

StateT = TypeVar("StateT", bound=Enum)
EventT = TypeVar("EventT", bound=Enum)


class IllegalTransitionError(InternalError):
    """An event that the state's row does not have."""

    code = "illegal-transition"


def advance(table: Mapping[StateT, Mapping[EventT, StateT]], state: StateT, event: EventT) -> StateT:
    """The state after `event`.

    Raises:
        IllegalTransitionError: the table has no such transition; nothing has changed.
    """
    try:
        return table[state][event]
    except KeyError:
        raise IllegalTransitionError(
            f"{type(state).__name__} {state.name}", f"{event.name} is not legal here", "report this as a defect"
        ) from None
