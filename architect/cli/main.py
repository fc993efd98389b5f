"""`architect`: the command line's entry. Parses, runs one command, turns errors into one line and an exit status.

The commands for users import nothing heavy, so that they start fast: no FastAPI, SQLAlchemy or numpy. The long-running processes
are behind the same name (`architect control`, `architect agent`, …) and are imported only when asked for.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys

from architect.errors import ArchitectError, InternalError, UsageError

DAEMONS = {
    "control": "architect.rest.main",
    "edge": "architect.conduit.edge_main",
    "agent": "architect.agent.main",
    "memory": "architect.silo.memory_main",
    "supervisor": "architect.clouds.local.supervisor",
}
INTERRUPTED = 130


def main(argv: list[str] | None = None) -> int:
    """Run the command in `argv` (the process's own by default) and return the exit status."""
    words = sys.argv[1:] if argv is None else argv
    try:
        if words and words[0] in DAEMONS:
            return int(importlib.import_module(DAEMONS[words[0]]).main(words[1:]))
        return _run(words)
    except ArchitectError as error:
        return _complain(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _drop_stdout()
        return 0
    except Exception as error:
        if os.environ.get("ARCHITECT_TRACEBACK"):
            raise
        return _complain(_defect(error))


def _run(words: list[str]) -> int:
    from architect.cli.parser import parse

    for number, word in enumerate(words, 1):
        if not _is_text(word):
            raise UsageError(f"argument {number} {word!r}", "is not UTF-8", "write it in UTF-8")
    options = parse(words)
    if options is None:
        return 0
    module, _, function = options.command.partition(":")
    status = getattr(importlib.import_module(f"architect.cli.{module}"), function)(options)
    sys.stdout.flush()
    return int(status)


def _complain(error: ArchitectError) -> int:
    with contextlib.suppress(OSError):
        line = f"architect: {error}"
        sys.stderr.write(line.encode("utf-8", "backslashreplace").decode() + "\n")
        sys.stderr.flush()
    return error.exit_status


def _defect(error: Exception) -> ArchitectError:
    return InternalError(
        "command", f"{type(error).__name__}: {error}", "report this as a defect; ARCHITECT_TRACEBACK=1 shows where it happened"
    )


def _drop_stdout() -> None:
    """Whoever read our output has gone: let the interpreter's last flush go nowhere, quietly."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_text(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
