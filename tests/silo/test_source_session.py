"""The source's session: a page leaves the move's map before it is read, so that a write beside the reading is not forgotten."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from architect.silo.dirty_log import DirtyLog
from architect.silo.memory_messages import SourceOptions
from architect.silo.page_runs import Pages
from architect.silo.page_sender import PageSender
from architect.silo.ram_file import RamFile
from architect.silo.source_session import SourceSession
from architect.silo.stream_messages import FRAME_PAGES

PAGES = 4 * FRAME_PAGES
OPTIONS = SourceOptions("session", "127.0.0.1", 1, "target", 2)


class Kernel:
    """Write tracking that clears what it reports."""

    def __init__(self) -> None:
        self.written: set[int] = set()

    def report(self) -> Pages:
        pages, self.written = sorted(self.written), set()
        return np.array(pages, np.int64)


class Sender:
    """Stands for a connection. While it sends, the guest writes the first page of the batch, and a scan finds that."""

    def __init__(self, kernel: Kernel, log: DirtyLog) -> None:
        self.batches: list[list[int]] = []
        self._kernel = kernel
        self._log = log

    def send(self, pages: Pages) -> None:
        self.batches.append(pages.tolist())
        self._kernel.written.add(int(pages[0]))
        self._log.scan()


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def log(kernel: Kernel, tmp_path: Path) -> DirtyLog:
    return DirtyLog(PAGES, tmp_path, kernel.report)


@pytest.fixture
def session(log: DirtyLog) -> Iterator[SourceSession]:
    ram = RamFile.create(PAGES * 4096)
    made = SourceSession(OPTIONS, ram, log, ssl.create_default_context())
    yield made
    made.end()
    ram.close()


def test_a_page_that_is_written_while_it_is_sent_is_sent_again(session: SourceSession, kernel: Kernel, log: DirtyLog) -> None:
    sender = Sender(kernel, log)
    dirty = session._map
    session._send_batches(cast(PageSender, sender), dirty.pages(), None)
    assert sorted(page for batch in sender.batches for page in batch) == list(range(PAGES))
    assert dirty.pages().tolist() == sorted(batch[0] for batch in sender.batches)


def test_a_round_that_is_stopped_keeps_what_it_has_not_sent(session: SourceSession, kernel: Kernel, log: DirtyLog) -> None:
    sender = Sender(kernel, log)
    session._send_batches(cast(PageSender, sender), session._map.pages(), deadline_s=0.0)
    assert sender.batches == [] and session.pages_left == PAGES


def test_cold_extents_go_first(session: SourceSession, kernel: Kernel, log: DirtyLog) -> None:
    kernel.written.update(range(64))
    log.scan()
    ordered = session._in_order(session._map.pages()).tolist()
    assert ordered == [*range(64, PAGES), *range(64)]
