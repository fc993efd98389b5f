"""Demand server: at the source of a post-copy move, answers the pages that the running guest waits for.

Demanded pages first; while nobody demands, their neighbours (the rest of the extent), because who reads a page reads on.
"""

from __future__ import annotations

import select
import threading
import time
from collections import deque

import numpy as np

from architect.model.sizes import PAGES_PER_EXTENT
from architect.silo.page_map import PageMap
from architect.silo.page_runs import Pages, decode_runs
from architect.silo.page_sender import PageSender
from architect.silo.stream_messages import FRAME_PAGES, Want
from architect.silo.urgent_thread import make_urgent
from architect.wire.framing import FrameError

NEIGHBOURS_MAX = 256


class DemandServer:
    """Serves one demand connection, in one thread (`run`).

    :param lacking: the pages that the target lacks; those that are sent leave it.
    """

    def __init__(self, sender: PageSender, lacking: PageMap) -> None:
        self.sender = sender
        self.demanded_pages = 0
        self.last_demand_s = float("-inf")
        self._lacking = lacking
        self._page_count = lacking.page_count
        self._extents: deque[Pages] = deque(maxlen=NEIGHBOURS_MAX)
        self._sending = threading.Lock()

    def run(self) -> None:
        """Serve until the connection ends.

        Raises:
            StreamLostError: it has ended (also when it was ended here).
            FrameError, PageRunsError: the target broke the protocol.
        """
        make_urgent()
        connection = self.sender.connection
        poller = select.poll()
        poller.register(connection.fileno(), select.POLLIN)
        while True:
            if self._extents and not connection.has_pending() and not poller.poll(0):
                with self._sending:
                    self._send(self._lacking.among(self._extents.popleft()))
                continue
            message, _ = connection.receive(None)
            if not isinstance(message, Want):
                raise FrameError(connection.peer, f"sent {type(message).__name__} for Want", "check that it is an Architect")
            pages = decode_runs(message.runs, self._page_count, connection.peer)
            with self._sending:
                self._answer(pages)

    def _answer(self, pages: Pages) -> None:
        if len(pages) > FRAME_PAGES:
            raise FrameError(self.sender.connection.peer, f"demanded {len(pages)} pages at once", "check that it is an Architect")
        self.last_demand_s = time.monotonic()
        self.demanded_pages += len(pages)
        self._send(pages)
        for extent in np.unique(pages // PAGES_PER_EXTENT).tolist():
            first = extent * PAGES_PER_EXTENT
            self._extents.append(np.arange(first, min(first + PAGES_PER_EXTENT, self._page_count)))

    def _send(self, pages: Pages) -> None:
        if len(pages):
            self._lacking.remove(pages)
            self.sender.send(pages)

    def wait_idle(self) -> None:
        """Return when what was taken out of the map so far has been sent."""
        with self._sending:
            pass
