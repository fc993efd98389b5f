"""`python -m architect.testing.simulate`: simulate handovers and fleets under faults, from seeds.

A seed is drawn to a scenario, the scenario is run, the judge says what was wrong. A failing one is shown with its trace (what
happened to the VMs concerned comes first) and then made smaller; the smallest scenario that still fails is printed as Python, to be
pasted into a test.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor

from architect.testing.fleet import simulate_fleet
from architect.testing.fleet_incidents import describe as describe_incident
from architect.testing.fleet_scenario import Fleet, draw_fleet
from architect.testing.sim_result import Result
from architect.testing.sim_scenario import Scenario, draw_scenario
from architect.testing.sim_shrink import AnyScenario, literal, shrink
from architect.testing.sim_trace import readable
from architect.testing.simulator import simulate

FLEET_EVERY = 12
PROGRESS_EVERY = 50


def draw(seed: int, hosts: int | None = None, vms: int | None = None) -> AnyScenario:
    """The scenario of a seed: every `FLEET_EVERY`th is a fleet, the others are handovers of one VM; a size makes it a fleet."""
    if hosts is not None or vms is not None or seed % FLEET_EVERY == 0:
        return draw_fleet(seed, hosts, vms)
    return draw_scenario(seed)


def run(scenario: AnyScenario) -> Result:
    """Run a scenario of either kind."""
    return simulate_fleet(scenario) if isinstance(scenario, Fleet) else simulate(scenario)


def headline(result: Result) -> str:
    """A run in one line."""
    scenario = result.scenario
    facts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in result.facts.items())
    size = f"fleet of {len(scenario.hosts)} hosts" if isinstance(scenario, Fleet) else f"{len(scenario.moves)} moves of a VM"
    count = len(scenario.incidents) if isinstance(scenario, Fleet) else len(scenario.faults)
    verdict = f"{len(result.violations)} VIOLATIONS" if result.violations else "ok"
    return f"seed {scenario.seed}: {size}, {count} faults, {result.calls} calls, {result.duration_s:.0f} s, {facts}: {verdict}"


def describe(result: Result, *, verbose: bool) -> str:
    """A result for people: what happened to it, the violations, and with `verbose` or on failure the trace."""
    scenario = result.scenario
    lines = [headline(result)]
    if isinstance(scenario, Fleet):
        lines += [f"  {one.at_s:8.3f} s  {describe_incident(one)}" for one in scenario.incidents]
    else:
        lines += [f"  move  {move.mode.value} deadline={move.deadline_s} verify={move.verify}" for move in scenario.moves]
        lines += [
            f"  fault {f.kind.value} at call {f.call} ({f.phase}) of move {f.move}, {f.duration_s} s" for f in scenario.faults
        ]
        lines += [f"  {r.id} {r.state.value} {r.mode.value} {r.downtime_ms or 0:.1f} ms {r.reason}" for r in result.reports]
    lines += [f"  VIOLATION {violation}" for violation in result.violations]
    if verbose or result.violations:
        lines += readable(result.trace, result.violations, whole=verbose)
    return "\n".join(lines)


def explain(result: Result, run_it: Callable[[AnyScenario], Result], *, verbose: bool, shrinks: bool) -> str:
    """A failure for people: its trace, then the smallest scenario found that fails alike, with its own trace."""
    text = describe(result, verbose=verbose)
    if not shrinks:
        return text
    smallest = shrink(result, run_it)
    return "\n".join([text, "", "== shrunk to ==", describe(smallest, verbose=False), "", literal(smallest.scenario)])


def main(arguments: list[str] | None = None) -> int:
    """The command; 1 if a simulation found a violation."""
    options = _parser().parse_args(arguments)
    seeds = _seeds(options)
    failed, started_s = 0, time.monotonic()
    for index, (scenario, result) in enumerate(_results(seeds, options), 1):
        if result.violations:
            failed += 1
            print(explain(run(scenario), run, verbose=options.verbose, shrinks=not options.no_shrink), flush=True)
            if failed >= options.failures:
                break
        elif len(seeds) == 1:
            print(describe(result, verbose=options.verbose))
        elif options.verbose:
            print(headline(result), flush=True)
        elif index % PROGRESS_EVERY == 0:
            print(f"{index} of {len(seeds)} seeds, {time.monotonic() - started_s:.0f} s", flush=True)
    print(f"{len(seeds)} simulated, {failed} with violations" if failed < options.failures else f"stopped after {failed} failures")
    return 1 if failed else 0


def _results(seeds: range, options: argparse.Namespace) -> Iterator[tuple[Scenario | Fleet, Result]]:
    scenarios = [draw(seed, options.hosts, options.vms) for seed in seeds]
    if options.jobs <= 1 or len(seeds) == 1:
        yield from ((scenario, run(scenario)) for scenario in scenarios)
        return
    with ProcessPoolExecutor(options.jobs) as pool:
        yield from zip(scenarios, pool.map(_run_quietly, scenarios, chunksize=4), strict=True)


def _run_quietly(scenario: AnyScenario) -> Result:
    """Without trace and events, which are large; a failing scenario is run again."""
    result = run(scenario)
    return Result(scenario, result.violations, (), result.facts, result.calls, result.duration_s, (), ())


def _seeds(options: argparse.Namespace) -> range:
    if not options.seeds:
        return range(options.seed, options.seed + options.count)
    first, _, last = options.seeds.partition("..")
    return range(int(first), int(last or first) + 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m architect.testing.simulate",
        description="Simulate handovers and fleets under faults; see docs/operations/simulation.md.",
    )
    parser.add_argument("--seed", type=int, default=1, help="the first seed (default 1)")
    parser.add_argument("--count", type=int, default=1, help="how many seeds from --seed on (default 1)")
    parser.add_argument("--seeds", metavar="A..B", default="", help="seeds A to B, both included; instead of --seed and --count")
    parser.add_argument("--hosts", type=int, help="simulate fleets of so many hosts (default: the seed chooses)")
    parser.add_argument("--vms", type=int, help="simulate fleets of so many VMs (default: the seed chooses)")
    parser.add_argument("--jobs", type=int, default=1, help="processes to use (default 1)")
    parser.add_argument("--failures", type=int, default=1, help="stop after so many failing seeds (default 1)")
    parser.add_argument("--no-shrink", action="store_true", help="do not look for a smaller scenario that fails, too")
    parser.add_argument("--verbose", action="store_true", help="a line a seed; the whole trace of a single seed or a failing one")
    return parser


if __name__ == "__main__":
    sys.exit(main())
