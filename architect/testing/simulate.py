"""`python -m architect.testing.simulate --seed N [--verbose] [--count M]`: run simulations, and show how a failing one went."""

from __future__ import annotations

import argparse
import sys

from architect.testing.sim_scenario import draw_scenario
from architect.testing.sim_trace import readable
from architect.testing.simulator import Result, simulate


def describe(result: Result, *, verbose: bool) -> str:
    """A result for people: the scenario, the moves, the violations, and with `verbose` or on failure the trace."""
    scenario = result.scenario
    lines = [
        f"seed {scenario.seed}: {scenario.pages} pages, {scenario.blocks} blocks, {result.calls} calls, {result.duration_s:.1f} s",
        *(f"  move  {move.mode.value} deadline={move.deadline_s} verify={move.verify}" for move in scenario.moves),
        *(f"  fault {f.kind.value} at call {f.call} ({f.phase}) of move {f.move}, {f.duration_s} s" for f in scenario.faults),
        *(f"  {r.id} {r.state.value} {r.mode.value} {r.downtime_ms:.1f} ms {r.reason}" for r in result.reports),
        *(f"  VIOLATION {violation}" for violation in result.violations),
    ]
    if verbose or result.violations:
        lines += readable(result.trace, result.violations, whole=verbose)
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """The command; 1 if a simulation found a violation."""
    parser = argparse.ArgumentParser(prog="architect.testing.simulate", description="Simulate handovers under faults.")
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--count", type=int, default=1, help="how many seeds")
    parser.add_argument("--verbose", action="store_true", help="show the trace")
    options = parser.parse_args(arguments)
    failed = 0
    for seed in range(options.seed, options.seed + options.count):
        result = simulate(draw_scenario(seed))
        failed += bool(result.violations)
        if options.verbose or result.violations or options.count == 1:
            print(describe(result, verbose=options.verbose))
    print(f"{options.count} simulated, {failed} with violations")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
