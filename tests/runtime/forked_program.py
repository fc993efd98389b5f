"""A program for the tests of the fork server: does what its first argument says."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path


def main(argv: list[str]) -> int:
    """Returns the exit status."""
    match argv:
        case ["say", word]:
            print(word, os.getsid(0) == os.getpid(), flush=True)
        case ["fail"]:
            print("this went wrong", file=sys.stderr, flush=True)
            return 3
        case ["files"]:
            print(len(list(Path("/proc/self/fd").iterdir())), flush=True)
        case ["wait"]:
            time.sleep(60)
    return 0
