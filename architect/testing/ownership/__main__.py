"""`python -m architect.testing.ownership`: explore the ownership protocol, and print what was found; 1 if something is wrong."""

from __future__ import annotations

import argparse
import sys

from architect.testing.ownership.explorer import Finding, explore
from architect.testing.ownership.model import Bounds, Rules

SMALL = (
    Bounds(kills=1, deaths=1, losses=0),
    Bounds(kills=0, deaths=1, losses=1),
    Bounds(kills=0, deaths=0, losses=0, isolations=0, takeovers=1),
)
"""What `make test` explores."""
LARGE = (
    Bounds(kills=2, deaths=2, losses=1),
    Bounds(moves=2, kills=1, deaths=1, losses=0),
    Bounds(kills=1, deaths=1, losses=0, reboots=1, expiries=1),
    Bounds(kills=1, deaths=0, losses=0, isolations=1),
    Bounds(kills=0, deaths=1, losses=0, isolations=1, takeovers=1),
)
"""What `make soak` explores."""


def describe(bounds: Bounds, finding: Finding) -> str:
    """A finding for people."""
    allowed = " ".join(f"{name}={getattr(bounds, name)}" for name in bounds.__struct_fields__)
    size = f"{finding.states} states, {finding.transitions} steps, {finding.depth} deep, {finding.seconds:.1f} s"
    if not finding.wrong:
        return f"{allowed}: nothing wrong in {size}"
    lines = (f"  {number:3}. {sentence}" for number, sentence in enumerate(finding.trace, 1))
    return "\n".join((f"{allowed}: WRONG: {finding.wrong} (after {size})", *lines))


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m architect.testing.ownership",
        description="Try every order of every step of the ownership protocol, within bounds on what goes wrong.",
    )
    parser.add_argument("--large", action="store_true", help="explore the larger set of bounds (minutes)")
    for name in Bounds.__struct_fields__:
        parser.add_argument(f"--{name}", type=int, metavar="N", help=f"at most N {name} (sets the bounds by hand)")
    rules = [name.replace("_", "-") for name in Rules.__struct_fields__]
    parser.add_argument("--break", dest="broken", action="append", default=[], choices=rules, help="break this rule on purpose")
    options = parser.parse_args(arguments)
    by_hand = {name: value for name in Bounds.__struct_fields__ if (value := getattr(options, name)) is not None}
    chosen = (Bounds(**by_hand),) if by_hand else (LARGE if options.large else SMALL)
    broken = Rules(**{name.replace("-", "_"): False for name in options.broken})
    is_wrong = False
    for bounds in chosen:
        finding = explore(bounds, broken)
        is_wrong = is_wrong or bool(finding.wrong)
        print(describe(bounds, finding), flush=True)
    return 1 if is_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
