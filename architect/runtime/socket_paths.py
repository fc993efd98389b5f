"""Unix sockets in folders with long names: an address holds 107 bytes, the way through an open folder is always short."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def short_socket_path(path: Path) -> Iterator[str]:
    """A way to the socket that fits into a unix address, for binding or connecting while the block runs.

    Raises:
        OSError: the folder of the socket does not exist.
    """
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
