"""Ctrl-C at any moment of a command's life: no traceback."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

INTERRUPT = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"


def python(code: str, *, is_ignored: bool = False) -> subprocess.CompletedProcess[str]:
    """A process of its own, with Ctrl-C as a shell gives it to a job in front, or to one in the background."""
    handler = signal.SIG_IGN if is_ignored else signal.SIG_DFL
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, handler),
    )  # fmt: skip


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(f"import architect.cli.entry; {INTERRUPT}", id="before anything else is imported"),
        pytest.param(
            f"import sys; import architect.cli.entry as entry; sys.argv = ['architect', '--version']; entry.main(); {INTERRUPT}",
            id="after the command",
        ),
    ],
)
def test_an_interrupt_outside_the_command_ends_the_process_quietly(code: str) -> None:
    done = python(code)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_an_interrupt_in_the_command_is_its_exit_status() -> None:
    done = python(
        "import sys, os, signal; import architect.cli.entry as entry, architect.cli.main as main\n"
        "main._run = lambda words: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.exit(entry.main())"
    )
    assert (done.returncode, done.stderr) == (130, "")


def test_a_job_in_the_background_goes_on() -> None:
    done = python(f"import architect.cli.entry; {INTERRUPT}; print('alive')", is_ignored=True)
    assert (done.returncode, done.stdout) == (0, "alive\n")


def test_the_beginning_imports_nothing_that_takes_time() -> None:
    code = "import sys; before = set(sys.modules); import architect.cli.entry; print(*sorted(set(sys.modules) - before))"
    assert set(python(code).stdout.split()) <= {"architect", "architect.cli", "architect.cli.entry", "__future__"}
