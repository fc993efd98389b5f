"""A disk that comes: tried on for as long as somebody wants it."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace
from typing import Any, cast

import pytest

from architect.agent.disk_arrival import DiskArrival
from architect.errors import HostError
from architect.testing.virtual_time import LoopClock, run_virtual

BROKEN = HostError("disk", "its connection is broken", "wait")


class Qmp:
    """A QEMU whose disk cannot be taken up."""

    async def execute(self, command: str, *_: object, **__: object) -> Any:
        raise BROKEN


def _arrival(connect: Any) -> DiskArrival:
    machine = cast("Any", SimpleNamespace(is_running=True, qmp=Qmp()))
    return DiskArrival("web", "aws-1", machine, connect, LoopClock())


def test_a_disk_whose_source_cannot_be_reached_is_tried_on_for_an_hour() -> None:
    tries = 0

    async def connect() -> socket.socket:
        nonlocal tries
        tries += 1
        raise BROKEN

    async def test() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3600):
                await _arrival(connect).wait_present()

    run_virtual(test())
    assert tries > 1000


def test_a_wait_that_is_cancelled_ends_though_what_it_cleans_up_fails() -> None:
    async def connect() -> socket.socket:
        try:
            await asyncio.sleep(1000)
        finally:
            raise BROKEN

    async def test() -> None:
        waiting = asyncio.create_task(_arrival(connect).wait_present())
        await asyncio.sleep(10)
        waiting.cancel()
        done, _ = await asyncio.wait((waiting,), timeout=100)
        assert done and waiting.cancelled()

    run_virtual(test())
