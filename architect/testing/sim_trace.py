"""The trace of a simulation, for people: time, party, VM and event in columns; what concerns the failing VMs first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

LINES_OF_VM_MAX = 60
LINES_MAX = 400


class TraceLine(msgspec.Struct, frozen=True):
    """One line: `who` did or saw `text` at `time_s` from the start, about `vm` if it is about one."""

    time_s: float
    who: str
    vm: str
    text: str

    def __str__(self) -> str:
        return f"{self.time_s:10.4f}  {self.who:<14} {self.vm[-4:]:<4}  {self.text}"


def readable(trace: Sequence[TraceLine], violations: Iterable[str], *, whole: bool = False) -> list[str]:
    """The trace as lines of text: the last events of the VMs that a violation names, then the end of everything."""
    text = " ".join(violations)
    lines: list[str] = []
    for vm in sorted({line.vm for line in trace if line.vm and line.vm in text}):
        own = [line for line in trace if line.vm == vm or line.who in ("JUDGE", "fault", "network") or vm in line.text]
        lines += [f"-- the last events of {vm}", HEAD, *map(str, own[-LINES_OF_VM_MAX:])]
    rest = trace if whole else list(trace)[-LINES_MAX:]
    return [*lines, "-- all events" if whole else f"-- the last {len(rest)} events", HEAD, *map(str, rest)]


HEAD = f"{'seconds':>10}  {'party':<14} {'vm':<4}  event"
