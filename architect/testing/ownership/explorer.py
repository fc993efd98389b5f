"""Explores the ownership model: every order of every step within the bounds, each state once.

Two questions. Is there a state, or a step, that must never be (`model.fault_of`, `fault_between`)? And is there a state from which,
when faults stop, no good one can be reached any more, though a copy of the VM is intact? An answer is a trace: the shortest way
there, step by step.
"""

from __future__ import annotations

import time
from collections import deque

import msgspec

from architect.testing.ownership.model import (
    Bounds,
    Rules,
    State,
    fault_between,
    fault_of,
    initial,
    intact,
    is_good,
    is_owed,
    is_settled,
)
from architect.testing.ownership.surroundings import faults, steps


class Finding(msgspec.Struct, frozen=True):
    """What the exploration found. `wrong` is "" when nothing is; `trace` is how to get there."""

    states: int
    transitions: int
    depth: int
    seconds: float
    wrong: str = ""
    trace: tuple[str, ...] = ()


def explore(bounds: Bounds, rules: Rules | None = None, states_max: int = 10_000_000) -> Finding:
    """Everything within the bounds; ends at the first thing that must not be."""
    return _Exploration(bounds, rules or Rules(), states_max).run()


class _Exploration:
    """One breadth-first walk. `_numbers` gives each state its number; the lists are by number."""

    def __init__(self, bounds: Bounds, rules: Rules, states_max: int) -> None:
        self._rules = rules
        self._states_max = states_max
        first = initial(bounds)
        self._numbers: dict[State, int] = {first: 0}
        self._states = [first]
        self._ways: list[tuple[int, str]] = [(-1, "the VM runs at S")]
        self._depths = [0]
        self._before: list[list[int]] = [[]]
        self._transitions = 0
        self._began_s = time.perf_counter()

    def run(self) -> Finding:
        """The walk, then the look back from the good states."""
        here = 0
        while here < len(self._states):
            if wrong := self._expand(here):
                return wrong
            here += 1
        return self._look_back()

    def _expand(self, here: int) -> Finding | None:
        state = self._states[here]
        for is_fault, ways in ((False, steps(state, self._rules)), (True, faults(state))):
            for sentence, after in ways:
                self._transitions += 1
                there = self._number(after, here, sentence)
                if not is_fault:
                    self._before[there].append(here)
                if wrong := fault_between(state, after) or fault_of(after):
                    return self._finding(wrong, here, sentence)
        return None

    def _number(self, state: State, here: int, sentence: str) -> int:
        number = self._numbers.get(state)
        if number is None:
            number = self._numbers[state] = len(self._states)
            self._states.append(state)
            self._ways.append((here, sentence))
            self._depths.append(self._depths[here] + 1)
            self._before.append([])
            assert number < self._states_max, "more states than expected: lower the bounds"
        return number

    def _look_back(self) -> Finding:
        """Every state with an intact copy must have a way to a good one, and every state one to where all is settled."""
        to_good = self._reaching([number for number, state in enumerate(self._states) if is_good(state)])
        to_settled = self._reaching([number for number, state in enumerate(self._states) if is_settled(state)])
        for number, state in enumerate(self._states):
            if not to_settled[number]:
                return self._finding("nobody can bring this to an end", number)
            if not to_good[number] and is_owed(state):
                return self._finding(f"the copy at {intact(state)[0]} is intact, and the VM can never run again", number)
        return self._finding("", 0)

    def _reaching(self, ends: list[int]) -> bytearray:
        found = bytearray(len(self._states))
        open_states = deque(ends)
        for end in ends:
            found[end] = 1
        while open_states:
            for before in self._before[open_states.popleft()]:
                if not found[before]:
                    found[before] = 1
                    open_states.append(before)
        return found

    def _finding(self, wrong: str, number: int, last: str = "") -> Finding:
        seconds = time.perf_counter() - self._began_s
        trace = [last] if last else []
        while wrong and number > 0:
            before, sentence = self._ways[number]
            trace.append(sentence)
            number = before
        return Finding(len(self._states), self._transitions, max(self._depths), seconds, wrong, tuple(reversed(trace)))
