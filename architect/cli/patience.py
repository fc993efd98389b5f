"""Patience: a control plane that was killed is started again by its supervisor; commands that follow something wait for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from architect.cli.client import StreamBrokenError
from architect.errors import UnavailableError

PATIENCE_S = 30.0
RETRY_S = 0.3

ItemT = TypeVar("ItemT")


def resumed(open_stream: Callable[[], Iterator[ItemT]]) -> Iterator[ItemT]:
    """The items of a stream that is opened again when it breaks; `open_stream` opens it where the last one ended.

    A first failure to connect is final; later ones are for up to `PATIENCE_S` in a row.

    Raises:
        ArchitectError: what the stream reported.
        UnavailableError: the control plane stays away.
    """
    broken_since_s: float | None = None
    has_connected = False
    while True:
        try:
            for item in open_stream():
                has_connected, broken_since_s = True, None
                yield item
            return
        except UnavailableError as error:
            if not has_connected and not isinstance(error, StreamBrokenError):
                raise
            has_connected = True
            broken_since_s = broken_since_s if broken_since_s is not None else time.monotonic()
            if time.monotonic() - broken_since_s > PATIENCE_S:
                raise
            time.sleep(RETRY_S)


def asked_again(ask: Callable[[], ItemT]) -> ItemT:
    """The answer to a question that changes nothing, asked again for up to `PATIENCE_S` while nobody answers."""
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            return ask()
        except UnavailableError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(RETRY_S)
