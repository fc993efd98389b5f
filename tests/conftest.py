"""All tests: skips by capability, and a guard that a run leaves nothing behind.

With several workers (`-n`, pytest-xdist) each has a place of its own, and tells the main process what it skipped and what was left.

A test marked `host` needs what `host_capabilities.CHECKS` lists, or only what its mark names (`pytest.mark.host("root", "bpf")`).
"""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests import host_capabilities, leftovers
from tests.machine import Machine, machine

# A loaded machine is no defect: what bounds a test is its timeout, not how long one example takes.
hypothesis.settings.register_profile("architect", deadline=None)
hypothesis.settings.load_profile("architect")

_skips: Counter[str] = Counter()
_causes: dict[str, str] = {}
_left: list[str] = []
_places: list[leftovers.Place] = []
_is_isolated = False


def pytest_sessionstart() -> None:
    """Make the run's own place, before anything starts."""
    global _is_isolated
    # A shell's background job is started with SIGINT ignored, and would hand that on to the commands that tests interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Who ends a run so (`timeout`, a CI job's limit) wants its fabrics taken down as after Ctrl-C, not left behind.
    signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    _is_isolated = leftovers.isolate()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what the machine cannot run, with the reason. Workers get the files of minutes first, so that they end together."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.get_closest_marker("host") is None and item.path.parent.name != "simulation")
    for item in items:
        mark = item.get_closest_marker("host")
        if mark is None:
            continue
        capability, cause = host_capabilities.first_missing(tuple(mark.args))
        if capability:
            _skips[capability] += 1
            _causes[capability] = cause
            item.add_marker(pytest.mark.skip(reason=f"needs {capability}: {cause}"))


def pytest_keyboard_interrupt() -> None:
    """An interrupted run ends its workers in the middle of their tests: what they leave is found by their places."""
    if _is_isolated:
        _places.extend(leftovers.places_of_children())


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run that leaves processes, namespaces or pins behind, and remove them."""
    if _is_isolated:
        _left.extend(leftovers.find(_places))
        leftovers.remove(_places)
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput |= {"left": _left, "skips": dict(_skips), "causes": _causes}
    if _left and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A worker has ended, in whatever way: what it left is the run's. What it skips, each of them would: all collect all tests."""
    told = getattr(node, "workeroutput", {})
    _left.extend(told.get("left", []))
    _skips.update({capability: count - _skips[capability] for capability, count in told.get("skips", {}).items()})
    _causes.update(told.get("causes", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests were skipped for want of what, and what was left behind."""
    if _skips:
        terminalreporter.section("skipped for want of a capability")
        for capability, count in sorted(_skips.items()):
            terminalreporter.line(f"{count:5d} need {capability}: {_causes[capability]}")
    if _left:
        terminalreporter.section("left behind (the run fails; removed now)")
        for line in _left:
            terminalreporter.line(line)


@pytest.fixture
def machine_namespace() -> Iterator[Machine]:
    """A network namespace that plays "this machine", so that a fabric's link and route do not touch the real one's."""
    with machine() as made:
        yield made


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """A state folder with a short path."""
    path = Path(tempfile.mkdtemp(prefix="arc", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)
