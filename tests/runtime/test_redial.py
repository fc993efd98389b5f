"""Connections that stand for ever."""

from __future__ import annotations

import asyncio

import pytest

from architect.errors import UnavailableError
from architect.runtime.redial import RETRY_S_MAX, RETRY_S_MIN, redial_forever
from architect.testing.virtual_time import run_virtual


def dials(lengths_s: list[float]) -> list[float]:
    """The pauses after sessions of these lengths, each of which ends with the connection's loss."""
    pauses: list[float] = []

    async def session() -> None:
        await asyncio.sleep(lengths_s[len(pauses)])
        raise UnavailableError("peer", "went away", "wait")

    async def sleep(pause_s: float) -> None:
        pauses.append(pause_s)
        if len(pauses) == len(lengths_s):
            raise EndOfTestError
        await asyncio.sleep(pause_s)

    async def test() -> None:
        with pytest.raises(EndOfTestError):
            await redial_forever("peer", session, sleep)

    run_virtual(test())
    return pauses


class EndOfTestError(Exception):
    """Enough dialled."""


def test_a_peer_that_stays_away_is_dialled_ever_more_slowly_up_to_a_limit() -> None:
    pauses = dials([0.0] * 8)
    assert pauses[:3] == [RETRY_S_MIN, RETRY_S_MIN * 2, RETRY_S_MIN * 4]
    assert pauses[-1] == RETRY_S_MAX == max(pauses)


def test_a_connection_that_stood_for_long_is_dialled_again_at_once_however_many_failed_before_it() -> None:
    assert dials([0.0] * 8 + [3600.0])[-1] == RETRY_S_MIN


def test_a_peer_that_takes_connections_and_drops_them_is_dialled_ever_more_slowly_too() -> None:
    assert dials([0.5] * 8)[-1] == RETRY_S_MAX
