"""The dirty log: what was written reaches every consumer, whatever else happens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from architect.silo.dirty_log import DirtyLog
from architect.silo.page_runs import Pages

COUNT = 64


class FakeKernel:
    """Guest memory as versions, and write tracking that clears what it reports."""

    def __init__(self) -> None:
        self.versions = [0] * COUNT
        self._written: set[int] = set()

    def write(self, page: int) -> None:
        self.versions[page] += 1
        self._written.add(page)

    def written(self) -> Pages:
        pages, self._written = sorted(self._written), set()
        return np.array(pages, np.int64)


class LogMachine(RuleBasedStateMachine):
    """A consumer copies pages as a move does; after a scan, what is not in its map is what it copied."""

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.kernel = FakeKernel()
        self.log = DirtyLog(COUNT, Path(self.folder.name), self.kernel.written)
        self.copies: dict[str, list[int]] = {}

    def teardown(self) -> None:
        self.folder.cleanup()

    @rule(page=st.integers(0, COUNT - 1))
    def write(self, page: int) -> None:
        self.kernel.write(page)

    @rule(name=st.sampled_from(["move", "epoch"]))
    def consume(self, name: str) -> None:
        self.log.consumer(name)
        self.copies.setdefault(name, [-1] * COUNT)

    @rule(name=st.sampled_from(["move", "epoch"]), page=st.integers(0, COUNT - 1), meanwhile=st.integers(0, COUNT - 1))
    def copy(self, name: str, page: int, meanwhile: int) -> None:
        if name in self.copies:
            self.log.consumer(name).remove(np.array([page]))
            self.copies[name][page] = self.kernel.versions[page]
            self.kernel.write(meanwhile)

    @rule(name=st.sampled_from(["move", "epoch"]))
    def drop(self, name: str) -> None:
        self.log.drop(name)
        self.copies.pop(name, None)

    @rule()
    def scan(self) -> None:
        self.log.scan()

    @rule()
    def crash(self) -> None:
        self.log = DirtyLog(COUNT, Path(self.folder.name), self.kernel.written)

    @invariant()
    def after_a_scan_what_is_clean_is_copied(self) -> None:
        self.log.scan()
        assert set(self.log.names()) == set(self.copies)
        for name, copy in self.copies.items():
            clean = self.log.consumer(name).flags == 0
            assert all(copy[page] == self.kernel.versions[page] for page in np.flatnonzero(clean))


TestLogMachine = LogMachine.TestCase
TestLogMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@given(st.sets(st.integers(0, COUNT - 1)))
@settings(max_examples=20, deadline=None)
def test_extents_that_are_written_are_hotter_than_those_that_were(pages: set[int]) -> None:
    import tempfile

    kernel = FakeKernel()
    with tempfile.TemporaryDirectory() as folder:
        log = DirtyLog(COUNT, Path(folder), kernel.written)
        kernel.write(0)
        log.scan()
        for page in pages:
            kernel.write(page)
        log.scan()
        written = {page // 16 for page in pages}
        assert all(log.heat[extent] >= 1 for extent in written)
        assert all(log.heat[extent] <= 0.5 for extent in set(range(4)) - written)
