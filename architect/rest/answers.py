"""How answers look: one JSON document, or a stream of JSON lines that ends in `{"result": …}` or `{"error": …}`.

An error is `{"error": {"code", "thing", "cause", "next_step"}}` with the class's HTTP status. A stream has sent its status
before it can fail, so a refusal at the start is an answer with an error status, and a later failure is the stream's last line.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from architect.errors import ArchitectError, InternalError

JSON_LINES = "application/x-ndjson"
FIRST_ITEM_S = 0.2

_log = logging.getLogger(__name__)


class ErrorDetail(msgspec.Struct, frozen=True):
    """An error for users: its stable code, and the three things it says."""

    code: str
    thing: str
    cause: str
    next_step: str


class ErrorAnswer(msgspec.Struct, frozen=True):
    """The body of an answer that is an error, and the last line of a stream that failed."""

    error: ErrorDetail


class ResultLine(msgspec.Struct, frozen=True):
    """The last line of a stream that went well."""

    result: Any


def document(value: Any, status: int = 200) -> Response:
    """One value as JSON."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def failure(error: ArchitectError) -> Response:
    """An error as an answer."""
    return document(_error_answer(error), error.http_status)


class _Lines(StreamingResponse):
    """A stream of lines that ends its source however it ends itself, also if its client left before the first line."""

    def __init__(self, first: asyncio.Future[Any], items: AsyncGenerator[Any]) -> None:
        super().__init__(_encoded(first, items), media_type=JSON_LINES)
        self._first = first
        self._items = items

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._first.cancel()
            await asyncio.gather(self._first, return_exceptions=True)
            await self._items.aclose()


async def lines(items: AsyncGenerator[Any]) -> Response:
    """A stream of items, one JSON line each; the caller wraps its last one in `ResultLine`. Empty lines mean nothing.

    Waits a moment for the first item, so that what fails at once becomes an answer with an error status.

    Raises:
        ArchitectError: the stream failed in its first moment.
    """
    first = asyncio.ensure_future(_first_of(items))
    await asyncio.wait([first], timeout=FIRST_ITEM_S)
    if first.done():
        first.result()
    return _Lines(first, items)


async def _first_of(items: AsyncGenerator[Any]) -> Any:
    return await anext(items)


async def _encoded(first: asyncio.Future[Any], items: AsyncGenerator[Any]) -> AsyncGenerator[bytes]:
    try:
        if not first.done():
            yield b"\n"
        yield msgspec.json.encode(await first) + b"\n"
        async for item in items:
            yield msgspec.json.encode(item) + b"\n"
    except ArchitectError as error:
        yield msgspec.json.encode(_error_answer(error)) + b"\n"
    except Exception as error:  # the boundary: the client must see an end
        _log.exception("a stream failed")
        yield msgspec.json.encode(_error_answer(defect(error))) + b"\n"


def defect(error: Exception) -> InternalError:
    """An exception that nobody foresaw, as an error of ours."""
    return InternalError("control plane", f"{type(error).__name__}: {error}", "report this as a defect")


async def on_error(_request: Request, error: Exception) -> Response:
    """FastAPI's handler for our errors."""
    assert isinstance(error, ArchitectError)
    return failure(error)


async def on_defect(_request: Request, error: Exception) -> Response:
    """FastAPI's handler for everything else."""
    return failure(defect(error))


def _error_answer(error: ArchitectError) -> ErrorAnswer:
    return ErrorAnswer(ErrorDetail(error.code, error.thing, error.cause, error.next_step))
