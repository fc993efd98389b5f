"""The fault server beside a kernel that refuses: faults that were read are not lost."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from typing import cast

import pytest

from architect.model.sizes import PAGE_BYTES
from architect.silo import fault_server
from architect.silo.fault_server import FaultServer
from architect.silo.page_runs import Pages, no_pages
from architect.silo.tracker import Tracker
from architect.silo.userfault import UserfaultError

PAGE_COUNT = 64
WAIT_S = 30.0
_ADDRESS = struct.Struct("Q")


class FakeKernel:
    """A userfaultfd and the tracker over it: a fault is told once, and again after a wake if its page is still absent."""

    def __init__(self, refusals: int) -> None:
        self._refusals = refusals
        self._lock = threading.Lock()
        self._waiting: set[int] = set()
        self._present: set[int] = set()
        self.all_served = threading.Event()
        self.userfault = self
        self.descriptor, self._told = os.pipe2(os.O_NONBLOCK)
        self.exit_descriptor, self._alive = os.pipe()

    def touch(self, *pages: int) -> None:
        with self._lock:
            self._waiting.update(pages)
        self._tell(pages)

    def _tell(self, pages: tuple[int, ...]) -> None:
        os.write(self._told, b"".join(_ADDRESS.pack(page * PAGE_BYTES) for page in pages))

    def read_faults(self) -> list[int]:
        return [address for (address,) in _ADDRESS.iter_unpack(os.read(self.descriptor, 512))]

    def page_at(self, address: int) -> int | None:
        return address // PAGE_BYTES

    def install(self, pages: Pages, source: int) -> int:
        if self._refusals:
            self._refusals -= 1
            raise UserfaultError("userfaultfd COPY", "the kernel refused (Cannot allocate memory)", "wait")
        self.install_new(pages, source)
        return len(pages)

    def install_new(self, pages: Pages, source: int) -> Pages:
        with self._lock:
            self._present.update(pages.tolist())
            self._waiting -= self._present
            if not self._waiting:
                self.all_served.set()
        return no_pages()

    def wake_all(self) -> None:
        with self._lock:
            waiting = tuple(self._waiting)
        self._tell(waiting)

    def close(self) -> None:
        for descriptor in (self.descriptor, self._told, self.exit_descriptor, self._alive):
            os.close(descriptor)


@pytest.fixture
def kernel() -> Iterator[FakeKernel]:
    kernel = FakeKernel(refusals=2)
    yield kernel
    kernel.close()


def test_faults_that_the_kernel_let_nobody_answer_are_answered_once_it_does(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fault_server, "RETRY_S", 0.001)
    server = FaultServer(cast(Tracker, kernel), PAGE_COUNT)
    kernel.touch(3, 40)
    server.start()

    served = kernel.all_served.wait(WAIT_S)

    server.stop()
    assert served
