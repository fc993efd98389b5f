"""Source contact: when the host that a VM comes from was last heard, on whatever connection.

Each of a move's connections is dialled by the source, and probed by our kernel while it is idle (`stream_connection.tune`). So as
long as the source's host can be reached, one that is open has been heard within a few seconds, and one that breaks is dialled
again. What stands still (a demanded page that does not come) says nothing of the kind.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from architect.silo.stream_connection import StreamConnection


class SourceContact:
    """The connections that a source has dialled. Any thread may call.

    :param now_s: a monotonic clock.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._lock = threading.Lock()
        self._connections: set[StreamConnection] = set()
        self._heard_s = now_s()

    def add(self, connection: StreamConnection) -> None:
        """The source has dialled another one."""
        with self._lock:
            self._connections.add(connection)
            self._heard_s = self._now_s()

    def silent_s(self) -> float:
        """How long nothing was heard; counted from the beginning if nothing ever was."""
        with self._lock:
            now_s = self._now_s()
            for connection in list(self._connections):
                if (silent_s := connection.silent_s()) is None:
                    self._connections.discard(connection)
                else:
                    self._heard_s = max(self._heard_s, now_s - silent_s)
            return now_s - self._heard_s
