"""A guest that its disk has stopped: reported with the reason, tried again, and going on when the disk does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from architect.agent.disk_watch import TRIED_FOR_S, TRY_EVERY_S, DiskWatch
from architect.drafter.disk_postcopy import RemoteState
from architect.drafter.machine_event import DiskFailed
from architect.errors import UnavailableError
from architect.testing.virtual_clock import VirtualClock, VirtualLoop, run_virtual

FULL = DiskFailed(0.0, "disk", "write", True, True, "No space left on device")


class _Machine:
    """QEMU with a guest that writes all the time: on a full disk it is stopped as soon as it runs."""

    name = "vm-1"

    def __init__(self) -> None:
        self.state = "running"
        self.is_full = False
        self.is_silent = False
        self.tries = 0
        self.blocks = RemoteState.NONE
        self.watch: DiskWatch | None = None

    async def status(self) -> str:
        return self.state

    async def remote(self) -> RemoteState:
        if self.is_silent:
            raise UnavailableError("QEMU", "does not answer", "see its log")
        return self.blocks

    async def resume(self) -> float:
        self.tries += 1
        if self.is_silent:
            raise UnavailableError("QEMU", "does not answer", "see its log")
        self.state = "running"
        self.write()
        return 0.0

    def write(self) -> None:
        if self.is_full:
            self.state = "io-error"
            assert self.watch is not None
            self.watch.failed(FULL)


def _play(test: Callable[[_Machine, DiskWatch, list[str], dict[str, bool]], Awaitable[None]], state: str = "running") -> None:
    async def main(loop: VirtualLoop) -> None:
        machine, told, may = _Machine(), cast("list[str]", []), {"resume": True}
        machine.state = state
        clock = VirtualClock(loop, 0.0)
        watch = DiskWatch(
            "aws-1", cast("Any", machine), clock, lambda: "gcp-1", machine.remote, lambda: may["resume"],
            lambda: told.append(watch.reason),
        )  # fmt: skip
        machine.watch = watch
        running = asyncio.create_task(watch.run())
        await asyncio.sleep(0)
        await test(machine, watch, told, may)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    run_virtual(main)


def test_a_guest_on_a_full_disk_is_reported_and_goes_on_when_there_is_room() -> None:
    async def test(machine: _Machine, watch: DiskWatch, told: list[str], _: dict[str, bool]) -> None:
        machine.is_full = True
        machine.write()
        assert watch.reason == "the disk of host aws-1 is full"
        await asyncio.sleep(5 * (TRY_EVERY_S + TRIED_FOR_S))
        assert (machine.state, machine.tries >= 4) == ("io-error", True)
        machine.is_full = False
        await asyncio.sleep(TRY_EVERY_S + 2 * TRIED_FOR_S)
        assert (machine.state, watch.reason) == ("running", "")
        assert told == ["the disk of host aws-1 is full", ""], "tries that fail are not told"
        tries = machine.tries
        await asyncio.sleep(10 * TRY_EVERY_S)
        assert machine.tries == tries

    _play(test)


def test_a_guest_that_somebody_else_has_stand_still_is_left_alone() -> None:
    async def test(machine: _Machine, watch: DiskWatch, _: list[str], may: dict[str, bool]) -> None:
        may["resume"] = False
        machine.is_full = True
        machine.write()
        machine.is_full = False
        await asyncio.sleep(10 * TRY_EVERY_S)
        assert (machine.tries, watch.reason != "") == (0, True)
        may["resume"] = True
        await asyncio.sleep(2 * TRY_EVERY_S)
        assert (machine.tries, watch.reason) == (1, "")

    _play(test)


def test_a_guest_that_was_stopped_while_no_agent_watched_goes_on_too() -> None:
    async def test(machine: _Machine, watch: DiskWatch, _: list[str], __: dict[str, bool]) -> None:
        assert watch.reason == "the disk of host aws-1 failed while no agent watched"
        await asyncio.sleep(2 * TRY_EVERY_S)
        assert (machine.state, watch.reason) == ("running", "")

    _play(test, "io-error")


def test_an_error_that_did_not_stop_the_guest_is_none_of_ours_and_a_silent_qemu_is_asked_again() -> None:
    async def test(machine: _Machine, watch: DiskWatch, told: list[str], _: dict[str, bool]) -> None:
        watch.failed(DiskFailed(0.0, "disk", "read", False, False, "I/O error"))
        await asyncio.sleep(2 * TRY_EVERY_S)
        assert (machine.tries, told) == (0, [])
        machine.is_silent = True
        watch.failed(DiskFailed(0.0, "disk", "read", True, False, "I/O error"))
        await asyncio.sleep(3 * TRY_EVERY_S)
        assert watch.reason == "its disk failed a read (I/O error)", "of which host is not known"
        machine.is_silent = False
        await asyncio.sleep(2 * TRY_EVERY_S)
        assert (machine.tries > 2, watch.reason) == (True, "")

    _play(test)


def test_a_block_that_is_still_at_the_source_is_no_fault_of_the_disk_here() -> None:
    async def test(machine: _Machine, watch: DiskWatch, told: list[str], _: dict[str, bool]) -> None:
        machine.blocks = RemoteState.BROKEN
        watch.failed(DiskFailed(0.0, "disk", "read", True, False, "I/O error"))
        await asyncio.sleep(TRY_EVERY_S / 2)
        where = "blocks of it are still at host gcp-1 (the connection there is broken)"
        assert watch.reason == f"its disk failed a read (I/O error): {where}"
        await asyncio.sleep(4 * TRY_EVERY_S)
        assert machine.tries == 0, "a guest is not told to go on into what is out of reach"
        machine.blocks = RemoteState.CONNECTED
        await asyncio.sleep(2 * TRY_EVERY_S)
        assert (machine.tries, watch.reason) == (1, "")
        machine.blocks = RemoteState.NONE
        watch.failed(DiskFailed(0.0, "disk", "write", True, False, "I/O error"))
        await asyncio.sleep(2 * TRY_EVERY_S)
        assert told[-2:] == ["the disk of host aws-1 failed a write (I/O error)", ""]

    _play(test)
