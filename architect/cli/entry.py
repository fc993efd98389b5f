"""Where the process begins: Ctrl-C ends it quietly from its first line on, as it does once `main` catches it.

Python's own handler raises KeyboardInterrupt, and the tens of milliseconds of imports before `main` is there to catch it would
print a traceback. Until then, and after the command, the kernel's default holds: the process ends by the signal, which shells show
as 130. Where Ctrl-C was to be ignored (a job in the background), it stays so. Tests import `main`, not this.
"""

from __future__ import annotations

# The interpreter's own part of `signal`, which is there already: `signal` itself imports enum and what that needs, about 10 ms.
import _signal  # type: ignore[import-not-found]

_IS_HEARD = _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler
if _IS_HEARD:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)


def main() -> int:
    """Run the command of this process's words; its exit status."""
    from architect.cli.main import main as run

    if not _IS_HEARD:
        return run()
    try:
        _signal.signal(_signal.SIGINT, _signal.default_int_handler)
        return run()
    finally:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
