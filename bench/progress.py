"""How far a long benchmark is: the time that it has taken, and is likely to take yet. Pure: it is told the time."""

from __future__ import annotations

from collections.abc import Sequence

from bench.results import Cell

# What a cell costs by a first guess, on two cores under TCG: its VMs start and fill their memory, each run works, moves and rests.
# Only how cells compare matters: the guess is scaled by what was seen.
_START_S, _START_S_PER_GIB = 15.0, 25.0
_RUN_S, _RUN_S_PER_GIB, _RUN_S_PER_DIRTY_GIB_S = 8.0, 8.0, 30.0


class Progress:
    """The plan of a benchmark: `runs_per_cell` runs in each of `cells`, in this order, from `now_s` on."""

    def __init__(self, cells: Sequence[Cell], runs_per_cell: int, now_s: float) -> None:
        self._began_s = now_s
        self._runs_total = runs_per_cell * len(cells)
        self._costs = [cost for cell in cells for cost in _costs(cell, runs_per_cell)]
        self._runs_done = 0

    def run_done(self) -> None:
        """One more run has ended."""
        self._runs_done = min(self._runs_done + 1, self._runs_total)

    def left_s(self, now_s: float) -> float | None:
        """How long it is likely to take yet; None before anything was seen."""
        if not self._runs_done:
            return None
        return (now_s - self._began_s) * sum(self._costs[self._runs_done :]) / sum(self._costs[: self._runs_done])

    def text(self, now_s: float) -> str:
        """`run 7 of 225, 4 min gone, about 38 min left`."""
        left_s = self.left_s(now_s)
        left = "" if left_s is None else f", about {_minutes(left_s)} left"
        return f"run {self._runs_done} of {self._runs_total}, {_minutes(now_s - self._began_s)} gone{left}"


def _costs(cell: Cell, runs: int) -> list[float]:
    """The cost of each run of a cell; the start of its VMs is the first one's."""
    gib = cell.memory_mib / 1024
    run_s = _RUN_S + _RUN_S_PER_GIB * gib + _RUN_S_PER_DIRTY_GIB_S * cell.dirty_mib_s / 1024 * gib
    return [run_s + (_START_S + _START_S_PER_GIB * gib if number == 0 else 0.0) for number in range(runs)]


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
