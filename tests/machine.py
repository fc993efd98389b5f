"""A stand-in for "this machine" in host tests: a network namespace with a loopback and nothing else."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from pyroute2 import IPRoute

from architect.runtime.namespaces import run_in_namespace, temporary_namespace

ResultT = TypeVar("ResultT")
_numbers = itertools.count()


class Machine:
    """Run code with the namespace as the machine's network; what it starts is in there too."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def run(self, function: Callable[[], ResultT]) -> ResultT:
        """What `function` returns, from a thread in the namespace."""
        return run_in_namespace(self.path, function)


@contextlib.contextmanager
def machine() -> Iterator[Machine]:
    """A machine for the length of a block."""
    with temporary_namespace(f"arctest-{os.getpid()}-{next(_numbers)}") as path:
        run_in_namespace(path, _loopback_up)
        yield Machine(path)


def reaches(namespace: Path, address: str, port: int = 9) -> bool:
    """Whether packets get from a namespace to an address and back: a refused connection is an answer, too."""

    def connect() -> bool:
        try:
            socket.create_connection((address, port), timeout=2).close()
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
        return True

    return run_in_namespace(namespace, connect)


def _loopback_up() -> None:
    with IPRoute() as ip:
        ip.link("set", index=1, state="up")
