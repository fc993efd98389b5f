"""The console: what a demo or a benchmark tells as it goes on."""

from __future__ import annotations

import time


def say(text: str) -> None:
    """A line of what happens, with the time."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)
