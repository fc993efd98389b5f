"""Served link: a link of a tunnel that ends in a file here. What the peer reads is answered at once, in one thread.

As of `tunnel_link`: two TLS connections, one for each direction.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

from architect.errors import ArchitectError
from architect.silo.exact_bytes import receive_exactly
from architect.silo.nbd_server import ServedFile
from architect.silo.stream_connection import StreamConnection
from architect.silo.tunnel_link import BUFFER_BYTES, CLOSE_TIMEOUT_S, Count

_log = logging.getLogger("architect.memory")


class ServedLink:
    """Answers until the peer's client is done, or the link breaks. Parameters as of `TunnelLink`."""

    def __init__(
        self, file: ServedFile, outward: StreamConnection, inward: StreamConnection, pace: Callable[[int], None], count: Count
    ) -> None:
        self._file = file
        self._outward = outward
        self._inward = inward
        self._pace = pace
        self._count = count

    def run(self) -> None:
        """Answer; returns when it is over. All is closed then."""
        replies, requests = self._outward.take_socket(), self._inward.take_socket()

        def receive(count: int) -> bytes:
            data = receive_exactly(requests, count)
            self._count(received=count)
            return data

        def send(data: memoryview) -> None:
            for at in range(0, len(data), BUFFER_BYTES):
                part = data[at : at + BUFFER_BYTES]
                self._pace(len(part))
                replies.sendall(part)
                self._count(sent=len(part))

        try:
            for direction in (replies, requests):
                direction.settimeout(None)
            self._file.serve(receive, send)
            for direction in (replies, requests):
                direction.settimeout(CLOSE_TIMEOUT_S)
                direction.unwrap()
        except ArchitectError as error:
            _log.warning("%s", error)
        except (OSError, ValueError):
            pass
        finally:
            self._outward.close()
            self._inward.close()

    def interrupt(self) -> None:
        """End it from another thread. Idempotent."""
        with contextlib.suppress(OSError):
            self._outward.interrupt()
            self._inward.interrupt()
