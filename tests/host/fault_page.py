"""The tables of docs/operations/fault-matrix.md, made from `fault_table`: `python -m tests.host.fault_page` writes them there.

With the results of a run (`out/fault-matrix.jsonl`, made by the tests) as argument it prints the table of silences, too.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from tests.host.fault_table import (
    COLUMNS,
    EXCEPTIONS,
    EXPECTED,
    PHASES,
    POSTCOPY,
    SOAKED,
    Outcome,
    Stage,
    Victim,
    cells,
    covering,
)

PAGE = Path(__file__).parents[2] / "docs" / "operations" / "fault-matrix.md"
MARKS = ("<!-- stages -->", "<!-- matrix -->", "<!-- end -->")
WORDS = {Outcome.AT_SOURCE: "source", Outcome.AT_TARGET: "target", Outcome.LOST: "lost"}


def stages() -> str:
    """Each stage, the states that users see, and its sub-steps; in italics those that a move has in post-copy mode."""
    lines = ["| stage | states | sub-steps where a fault strikes |", "|---|---|---|"]
    for stage in Stage:
        columns = [column for column in COLUMNS if column.stage is stage]
        states = ", ".join(phase.value for phase in PHASES if any(column.phase is phase for column in columns))
        names = [f"*{column.name}*" if column.mode == "postcopy" else column.name for column in columns]
        lines.append(f"| {stage.value} | {states} | {', '.join(names)} |")
    return "\n".join(lines)


def matrix() -> str:
    """What may come of each victim in each stage, and the test."""
    head = ["victim", *(stage.value for stage in Stage), "test"]
    lines = [_line(head), _line(["---"] * len(head))]
    for victim in Victim:
        row = [_words(EXPECTED[victim][stage]) for stage in Stage]
        test = f"`[{victim.name}-0]`, `make soak` only" if victim in SOAKED else f"`[{victim.name}]`"
        lines.append(_line([victim.value, *row, test]))
    lines += ["", "In post-copy mode, where that differs:", "", _line(head[:-1]), _line(["---"] * (len(head) - 1))]
    for victim, differing in POSTCOPY.items():
        lines.append(_line([victim.value, *(_words(differing[stage]) if stage in differing else "" for stage in Stage)]))
    lines += ["", "Cells that differ from their stage's:", ""]
    lines += [f"- {victim.value} × {name}: {_words(outcomes)}" for (victim, name), outcomes in EXCEPTIONS.items()]
    total = sum(len(cells(victim)) for victim in Victim)
    count = sum(len(strike.cells) for strike in covering())
    return "\n".join(
        [*lines, "", f"{total} cells in `make soak`; {count} of them, pairwise in victims and parts of a move, in `make test`."]
    )


def silences(results: Path) -> str:
    """Median and longest silence in seconds, by victim and state."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for line in results.read_text().splitlines():
        result = json.loads(line)
        if result["outcome"] and result["outcome"] != Outcome.LOST:
            found[result["victim"], result["phase"]].append(result["silence_s"])
    lines = [_line(["victim", *(phase.value for phase in PHASES)]), _line(["---"] * (len(PHASES) + 1))]
    for victim in Victim:
        row = [found.get((victim.value, phase.value), []) for phase in PHASES]
        lines.append(_line([victim.value, *(f"{statistics.median(s):.1f} ({max(s):.1f})" if s else "" for s in row)]))
    return "\n".join(lines)


def filled(page: str) -> str:
    """The page with its tables as the code has them."""
    parts = {MARKS[0]: stages(), MARKS[1]: matrix()}
    for mark, text in parts.items():
        page = re.sub(f"{mark}\n.*?{MARKS[2]}", lambda _: f"{mark}\n{text}\n{MARKS[2]}", page, flags=re.DOTALL)  # noqa: B023 used at once
    return page


def _words(outcomes: frozenset[Outcome]) -> str:
    return " or ".join(WORDS[outcome] for outcome in Outcome if outcome in outcomes) or "–"


def _line(parts: list[str]) -> str:
    return f"| {' | '.join(parts)} |"


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
    if len(sys.argv) > 1:
        print(silences(Path(sys.argv[1])))
