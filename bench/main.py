"""`make bench`: runs one benchmark by its name, or all. Options behind the name are the benchmark's own (`--help`)."""

from __future__ import annotations

import sys

from architect.errors import ArchitectError
from bench import evacuate_many, migration, slow_link, transfer

BENCHMARKS = {
    "migration": migration.main,
    "transfer": transfer.main,
    "evacuate_many": evacuate_many.main,
    "slow_link": slow_link.main,
}


def main(words: list[str]) -> int:
    """Run the benchmark that the first word names (none: all); returns the exit status."""
    named = bool(words) and not words[0].startswith("-")
    if named and words[0] not in BENCHMARKS:
        print(f"bench: {words[0]} is no benchmark; there are: {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    chosen = [words[0]] if named else list(BENCHMARKS)
    try:
        return max(BENCHMARKS[name](words[1:] if named else words) for name in chosen)
    except ArchitectError as error:
        print(f"bench: {error}", file=sys.stderr)
        return error.exit_status


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
