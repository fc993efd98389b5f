"""Shrinking: from a scenario that fails to a smaller one that still fails in the same way.

A scenario is a value, so what is left out of it is left out of the run. Delta debugging (Zeller's ddmin) over its faults first,
then over VMs, moves and hosts; each candidate is one run. Two violations are of the same kind if they differ in names and
numbers only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec

from architect.testing.fleet_scenario import SERVICES, Fleet, IncidentKind
from architect.testing.sim_result import Result
from architect.testing.sim_scenario import Scenario

ItemT = TypeVar("ItemT")
AnyScenario = Scenario | Fleet
RUNS_MAX = 400
_OF_VM = (IncidentKind.MOVE, IncidentKind.CRASH_QEMU, IncidentKind.CRASH_MEMORY)


def kind_of(violation: str) -> str:
    """A violation without its names and numbers."""
    return re.sub(r"\bh\d+\b|vm-[0-9a-f]+|mig-[0-9a-f]+|\d+(\.\d+)?", "N", violation)


def ddmin(items: Sequence[ItemT], fails: Callable[[tuple[ItemT, ...]], bool]) -> tuple[ItemT, ...]:
    """A part of `items` that still fails, and of which no single item can be left out."""
    left = tuple(items)
    if not left or fails(()):
        return ()
    parts = 2
    while len(left) >= 2:
        size = max(len(left) // parts, 1)
        chunks = [left[start : start + size] for start in range(0, len(left), size)]
        without = [tuple(item for other in chunks if other is not chunk for item in other) for chunk in chunks]
        found = next((candidate for candidate in without if fails(candidate)), None)
        if found is not None:
            left, parts = found, max(parts - 1, 2)
        elif size == 1:
            break
        else:
            parts = min(parts * 2, len(left))
    return left


def shrink(result: Result, run: Callable[[AnyScenario], Result]) -> Result:
    """The result of the smallest scenario found that violates as `result` does."""
    wanted = {kind_of(violation) for violation in result.violations}
    best, runs = result, 0

    def try_it(scenario: AnyScenario) -> bool:
        nonlocal best, runs
        if runs >= RUNS_MAX:
            return False
        runs += 1
        found = run(scenario)
        if not wanted & {kind_of(violation) for violation in found.violations}:
            return False
        best = found
        return True

    if isinstance(result.scenario, Fleet):
        _shrink_fleet(lambda: best.scenario, try_it)
    else:
        _shrink_handovers(lambda: best.scenario, try_it)
    return best


def _shrink_handovers(best: Callable[[], Scenario], try_it: Callable[[AnyScenario], bool]) -> None:
    ddmin(best().faults, lambda faults: try_it(msgspec.structs.replace(best(), faults=faults)))
    last = max((fault.move for fault in best().faults), default=0)
    if last + 1 < len(best().moves):
        try_it(msgspec.structs.replace(best(), moves=best().moves[: last + 1]))
    for smaller in ({"pages": 16}, {"blocks": 4}, {"writes_per_tick": 1}):
        try_it(msgspec.structs.replace(best(), **smaller))


def _shrink_fleet(best: Callable[[], Fleet], try_it: Callable[[AnyScenario], bool]) -> None:
    ddmin(best().incidents, lambda incidents: try_it(msgspec.structs.replace(best(), incidents=incidents)))
    base = best()
    ddmin(range(len(base.vms)), lambda kept: try_it(_with_vms(base, kept)))
    used = {vm.host for vm in best().vms}
    for incident in best().incidents:
        used |= {incident.place, incident.other}
    spare = [host for host in best().hosts if host not in used - set(SERVICES)]
    for host in spare:
        try_it(msgspec.structs.replace(best(), hosts=tuple(one for one in best().hosts if one != host)))


def _with_vms(fleet: Fleet, kept: Sequence[int]) -> Fleet:
    """The fleet with only some of its VMs, by index; incidents of the others are left out."""
    index = {old: new for new, old in enumerate(kept)}
    incidents = []
    for incident in fleet.incidents:
        if incident.kind not in _OF_VM:
            incidents.append(incident)
        elif incident.vm in index:
            incidents.append(msgspec.structs.replace(incident, vm=index[incident.vm]))
    return msgspec.structs.replace(fleet, vms=tuple(fleet.vms[old] for old in kept), incidents=tuple(incidents))


def literal(value: Any, indent: str = "    ") -> str:
    """A scenario as Python that a test may hold: `Fleet(…)`, with enumerations by name."""
    return _literal(value, "", indent)


def _literal(value: Any, pad: str, indent: str) -> str:
    if isinstance(value, msgspec.Struct):
        fields = [
            (info.name, getattr(value, info.name))
            for info in msgspec.structs.fields(value)
            if info.default is msgspec.NODEFAULT or getattr(value, info.name) != info.default
        ]
        inner = ", ".join(f"{name}={_literal(one, pad + indent, indent)}" for name, one in fields)
        return f"{type(value).__name__}({inner})"
    if isinstance(value, tuple) and value and isinstance(value[0], msgspec.Struct):
        inside = "".join(f"\n{pad}{indent}{_literal(one, pad + indent, indent)}," for one in value)
        return f"({inside}\n{pad})"
    if hasattr(value, "name") and hasattr(value, "value"):
        return f"{type(value).__name__}.{value.name}"
    return repr(value)
