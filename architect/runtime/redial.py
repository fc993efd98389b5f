"""A connection that is to stand for ever: dialled again when it ends, more slowly while the other side is away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import NoReturn

from architect.errors import ArchitectError

RETRY_S_MIN = 0.1
RETRY_S_MAX = 2.0

_log = logging.getLogger(__name__)


async def redial_forever(name: str, session: Callable[[], Awaitable[None]], sleep: Callable[[float], Awaitable[None]]) -> NoReturn:
    """Run sessions one after another. The pause between them doubles from `RETRY_S_MIN` to `RETRY_S_MAX` while they are short.

    A session that lasted longer than the longest pause was a good one, however it ended: after it the other side is dialled soon.

    :param name: of the other side, for the log.
    :param session: dials, and lasts as long as the connection; an ArchitectError is why it ended.
    """
    now_s = asyncio.get_running_loop().time
    retry_s = RETRY_S_MIN
    while True:
        begun_s = now_s()
        try:
            await session()
        except ArchitectError as error:
            _log.info("%s: %s", name, error)
        if now_s() - begun_s > RETRY_S_MAX:
            retry_s = RETRY_S_MIN
        await sleep(retry_s)
        retry_s = min(retry_s * 2, RETRY_S_MAX)
