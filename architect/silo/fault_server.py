"""Fault server: answers the guest's touches of absent pages. One thread, which does nothing else, network of demands included.

A page that the VM lacks (`PageReceiver.missing`) is demanded from the source, once, and installed when it comes. Any other absent
page is zeros: the rest of its 64 KiB extent is filled with it, as far as that is absent and not missing. The server runs as long
as the memory is registered for missing pages, which is for the VM's life here.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import select
import threading
import time

import numpy as np

from architect.errors import ArchitectError
from architect.model.sizes import EXTENT_BYTES, PAGES_PER_EXTENT
from architect.runtime.process_end import has_ended
from architect.silo.fault_latency import FaultLatency
from architect.silo.page_receiver import PageReceiver
from architect.silo.page_runs import Pages, encode_runs
from architect.silo.stream_connection import StreamConnection
from architect.silo.stream_messages import FRAME_PAGES, Want, Zeros
from architect.silo.stream_messages import Pages as PagesMessage
from architect.silo.tracker import Tracker
from architect.silo.urgent_thread import make_urgent
from architect.silo.userfault import UserfaultError
from architect.wire.framing import FrameError

ANSWER_TIMEOUT_S = 10.0
RETRY_S = 0.1
_log = logging.getLogger("architect.memory")
_ZEROS = ctypes.create_string_buffer(EXTENT_BYTES)
_ZEROS_ADDRESS = ctypes.addressof(_ZEROS)


class FaultServer:
    """Serves one VM's faults until QEMU ends or `stop` is called.

    :param page_count: of the VM's RAM.
    """

    def __init__(self, tracker: Tracker, page_count: int) -> None:
        self._tracker = tracker
        self._page_count = page_count
        self._receiver: PageReceiver | None = None
        self._demand: StreamConnection | None = None
        self._offered: StreamConnection | None = None
        self._wanted: dict[int, float] = {}
        self._poller = select.poll()
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._stopping = False
        self.zero_latency = FaultLatency()
        self.remote_latency = FaultLatency()
        self._thread = threading.Thread(target=self._run, name="memory-faults", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._poller.register(self._tracker.userfault.descriptor, select.POLLIN)
        self._poller.register(self._tracker.exit_descriptor, select.POLLIN)
        self._poller.register(self._wake_read, select.POLLIN)
        self._thread.start()

    def receive_from(self, receiver: PageReceiver | None) -> None:
        """From now on `receiver` knows which absent pages are missing; None: none is."""
        self._receiver = receiver

    def demand_from(self, connection: StreamConnection) -> None:
        """Demand missing pages on this connection from now on, those that were demanded on another one included."""
        self._offered = connection
        self._wake()

    def stop(self) -> None:
        """End the thread. Idempotent."""
        self._stopping = True
        self._wake()
        if self._thread.is_alive():
            self._thread.join()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"w")

    def _run(self) -> None:
        make_urgent()
        uffd, ended = self._tracker.userfault.descriptor, self._tracker.exit_descriptor
        while not self._stopping:
            ready = [descriptor for descriptor, _ in self._poller.poll()]
            if ended in ready:
                return
            try:
                if uffd in ready:
                    self._serve_faults()
                if self._wake_read in ready:
                    self._take_offer()
                if self._demand is not None and self._demand.fileno() in ready:
                    self._take_answers(self._demand)
            except UserfaultError as error:
                if has_ended(ended):
                    return
                _log.error("fault server: %s; it is tried again", error)
                self._drop_demand()  # pages that it brought are asked for again on the next
                time.sleep(RETRY_S)
                with contextlib.suppress(UserfaultError):  # it is told again by who touches the page again
                    self._tracker.wake_all()
            except ArchitectError as error:
                if self._drop_demand():
                    _log.log(logging.WARNING if self._wanted else logging.INFO, "%s", error)
                else:
                    _log.error("fault server: %s", error)

    def _take_offer(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)
        if (offered := self._offered) is None:
            return
        self._offered = None
        self._drop_demand()
        self._demand = offered
        self._poller.register(offered.fileno(), select.POLLIN)
        self._request(np.array(sorted(self._wanted), np.int64))

    def _drop_demand(self) -> bool:
        if (demand := self._demand) is None:
            return False
        self._poller.unregister(demand.fileno())
        demand.close()
        self._demand = None
        return True

    def _serve_faults(self) -> None:
        now_s = time.perf_counter()
        wanted = []
        for address in self._tracker.userfault.read_faults():
            page = self._tracker.page_at(address)
            if page is None:
                continue
            receiver = self._receiver
            if receiver is not None and not receiver.is_cut:
                self._fill_before_cut(page, receiver)
            elif receiver is None or not receiver.missing.flags[page]:
                self._fill_zeros(page, receiver)
                self.zero_latency.add(time.perf_counter() - now_s)
            elif page not in self._wanted:
                self._wanted[page] = now_s
                wanted.append(page)
        if wanted:
            self._request(np.array(sorted(wanted), np.int64))

    def _request(self, pages: Pages) -> None:
        if self._demand is None:
            return  # a new connection will be told
        for at in range(0, len(pages), FRAME_PAGES):
            self._demand.send(Want(encode_runs(pages[at : at + FRAME_PAGES])))

    def _fill_before_cut(self, page: int, receiver: PageReceiver) -> None:
        """QEMU touches memory that is still on its way: zeros, which are forgotten like any old page if the cut says so."""
        with receiver.placing:
            receiver.mark_present(page, 1)
            self._tracker.install(np.array([page]), _ZEROS_ADDRESS)

    def _fill_zeros(self, page: int, receiver: PageReceiver | None) -> None:
        """Install zeros at `page`, then in the rest of its extent."""
        if self._tracker.install(np.array([page]), _ZEROS_ADDRESS) == 0:
            return
        start = page - page % PAGES_PER_EXTENT
        end = min(start + PAGES_PER_EXTENT, self._page_count)
        for first, last in ((page + 1, end), (start, page)):
            if last <= first or (receiver is not None and receiver.missing.flags[first:last].any()):
                continue
            self._tracker.install_new(np.arange(first, last), _ZEROS_ADDRESS)

    def _take_answers(self, demand: StreamConnection) -> None:
        while True:
            message, body = demand.receive(ANSWER_TIMEOUT_S)
            receiver = self._receiver
            if not isinstance(message, PagesMessage | Zeros) or receiver is None or not receiver.is_cut:
                raise FrameError(demand.peer, f"sent {type(message).__name__} unasked", "check that it is an Architect")
            pages = receiver.take(message, body, demand.peer)
            now_s = time.perf_counter()
            for page in pages.tolist():
                if (since_s := self._wanted.pop(page, None)) is not None:
                    self.remote_latency.add(now_s - since_s)
            if not demand.has_pending():
                return
