"""RPC over one stream connection: typed requests both ways, streamed answers, cancellation, deadlines.

A `Channel` serves the other side's requests with a handler and makes requests of its own. It owns all its tasks; `run` returns
when the connection ends, and by then every open call has failed with UnavailableError (not sent) or OutcomeUnknownError (sent).

    channel = Channel(stream, MESSAGES, handler, peer="host aws-1")
    async with asyncio.TaskGroup() as group:
        group.create_task(channel.run())
        answer = await channel.call(StopVm(vm), timeout_s=30)
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, cast

import msgspec

from architect.errors import OutcomeUnknownError, PeerError, UnavailableError, first_error
from architect.wire.call import (
    ITEMS_IN_FLIGHT_MAX,
    Answer,
    Cancel,
    Credit,
    Envelope,
    Failure,
    Item,
    Note,
    Request,
    error_of,
    failure_of,
)
from architect.wire.framing import PREFIX, FrameCodec

OPEN_CALLS_MAX = 256
CREDIT_EVERY = ITEMS_IN_FLIGHT_MAX // 2
CLOSE_GRACE_S = 1.0
WRITE_BUFFER_BYTES_MAX = 8 << 20


class Call:
    """An incoming request while it is served: lets the handler stream items back."""

    def __init__(self, channel: Channel, number: int) -> None:
        self._channel = channel
        self._number = number
        self._credit = asyncio.Semaphore(ITEMS_IN_FLIGHT_MAX)

    def grant(self, items: int) -> None:
        """The asker takes that many more items."""
        for _ in range(min(items, ITEMS_IN_FLIGHT_MAX)):
            self._credit.release()

    async def item(self, value: Any, body: bytes | memoryview = b"") -> None:
        """Send one part of the answer; waits while the asker does not take them."""
        await self._credit.acquire()
        raw = msgspec.Raw(self._channel.encode_value(value))
        await self._channel.send(Item(self._number, raw), body)


Handler = Callable[[Any, bytes, Call | None], Awaitable[Any]]
"""Serves a request (or a note, then `call` is None): message, body, call -> answer message, or (message, body)."""


class _OpenCall:
    def __init__(self) -> None:
        self.queue: asyncio.Queue[tuple[Any, bytes] | None] = asyncio.Queue(ITEMS_IN_FLIGHT_MAX + 1)
        self.answer: asyncio.Future[tuple[Any, bytes]] = asyncio.get_running_loop().create_future()
        self.streams = False
        self.taken = 0


class Channel:
    """One connection that carries calls both ways.

    :param reader, writer: the connection; the channel closes it.
    :param messages: the union of the channel's own messages, both directions.
    :param handler: serves the peer's requests and notes; an exception becomes a Failure.
    :param peer: how errors name the other side.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, messages: Any, handler: Handler | None, peer: str
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._codec: FrameCodec[Envelope] = FrameCodec(Envelope, peer)
        self._value_encoder = msgspec.msgpack.Encoder()
        self._value_codec: FrameCodec[Any] = FrameCodec(messages, peer)
        self._handler = handler
        self._calls: dict[int, _OpenCall] = {}
        self._serving: dict[int, asyncio.Task[None]] = {}
        self._served: dict[int, Call] = {}
        self._next_call = 1
        self._write_lock = asyncio.Lock()
        self._closed = False
        self.peer = peer

    def encode_value(self, value: Any) -> bytes:
        """A message of the channel's union as MessagePack."""
        return self._value_encoder.encode(value)

    @property
    def is_closed(self) -> bool:
        """Whether the connection has ended."""
        return self._closed

    async def run(self) -> None:
        """Serve until the connection ends; cancels what is being served then. Returns normally on a clean or broken end.

        Raises:
            FrameError: the peer broke the protocol; the connection is closed.
        """
        try:
            async with asyncio.TaskGroup() as group:
                try:
                    await self._read_frames(group)
                finally:
                    for task in self._serving.values():
                        task.cancel()
        except ExceptionGroup as group_error:
            raise first_error(group_error) from group_error
        finally:
            self._end()
            with contextlib.suppress(OSError, TimeoutError, ssl.SSLError):
                async with asyncio.timeout(1):
                    await self._writer.wait_closed()

    async def _read_frames(self, group: asyncio.TaskGroup) -> None:
        while True:
            try:
                head_bytes, body_bytes = self._codec.lengths(await self._reader.readexactly(PREFIX.size))
                head = await self._reader.readexactly(head_bytes)
                body = await self._reader.readexactly(body_bytes) if body_bytes else b""
            except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError, TimeoutError, OSError):
                return
            await self._dispatch(self._codec.decode(head), body, group)

    async def _dispatch(self, envelope: Envelope, body: bytes, group: asyncio.TaskGroup) -> None:
        if isinstance(envelope, Request):
            self._accept(envelope, body, group)
        elif isinstance(envelope, Note):
            if self._handler is not None:
                await self._handler(self._value_codec.decode(memoryview(envelope.value)), body, None)
        elif isinstance(envelope, Cancel):
            if (task := self._serving.get(envelope.call)) is not None:
                task.cancel()
        elif isinstance(envelope, Credit):
            if (served := self._served.get(envelope.call)) is not None:
                served.grant(envelope.items)
        elif (opened := self._calls.get(envelope.call)) is not None:
            if isinstance(envelope, Item):
                if opened.streams:
                    self._queue_item(opened, (self._value_codec.decode(memoryview(envelope.value)), body))
                else:
                    self._note_taken(envelope.call, opened)
                return
            if not opened.answer.done():
                if isinstance(envelope, Failure):
                    opened.answer.set_exception(error_of(envelope))
                else:
                    opened.answer.set_result((self._value_codec.decode(memoryview(envelope.value)), body))
            if opened.streams:
                self._queue_item(opened, None)

    def _queue_item(self, opened: _OpenCall, item: tuple[Any, bytes] | None) -> None:
        try:
            opened.queue.put_nowait(item)
        except asyncio.QueueFull:
            raise PeerError(
                self.peer, f"sent over {ITEMS_IN_FLIGHT_MAX} items that were not asked for", "check that it is of this version"
            ) from None

    def _note_taken(self, number: int, opened: _OpenCall) -> None:
        """Grant new items as old ones are taken; a few bytes that never wait, so that reading does not depend on writing."""
        opened.taken += 1
        if opened.taken == CREDIT_EVERY and not self._closed and not opened.answer.done():
            opened.taken = 0
            self._writer.write(self._codec.encode(Credit(number, CREDIT_EVERY)))

    def _accept(self, request: Request, body: bytes, group: asyncio.TaskGroup) -> None:
        message = self._value_codec.decode(memoryview(request.value))
        if len(self._serving) >= OPEN_CALLS_MAX or request.call in self._serving:
            busy = UnavailableError(self.peer, f"has over {OPEN_CALLS_MAX} calls open here", "wait for some to end")
            group.create_task(self.send(failure_of(request.call, busy)))
            return
        self._serving[request.call] = group.create_task(self._serve(request.call, message, body))

    async def _serve(self, number: int, message: Any, body: bytes) -> None:
        try:
            if self._handler is None:
                raise UnavailableError(self.peer, "asked a side that serves nothing", "report this as a defect")
            served = self._served[number] = Call(self, number)
            answer = await self._handler(message, body, served)
            value, answer_body = answer if isinstance(answer, tuple) else (answer, b"")
            reply: Envelope = Answer(number, msgspec.Raw(self.encode_value(value)))
        except asyncio.CancelledError:
            if self._closed or self._writer.is_closing():
                raise
            reply, answer_body = (
                failure_of(number, UnavailableError("request", "it was cancelled", "ask again if you need it")),
                b"",
            )
        except Exception as error:  # the boundary: whatever went wrong is the asker's to see
            reply, answer_body = failure_of(number, error), b""
        finally:
            self._serving.pop(number, None)
            self._served.pop(number, None)
        with contextlib.suppress(UnavailableError):
            await self.send(reply, answer_body)

    async def send(self, envelope: Envelope, body: bytes | memoryview = b"") -> None:
        """Send one envelope with its body; waits while the peer does not read.

        Raises:
            UnavailableError: the connection has ended.
        """
        head = self._codec.encode(envelope, len(body))
        try:
            async with self._write_lock:
                if self._closed:
                    raise ConnectionResetError
                self._writer.write(head + bytes(body) if len(body) < 65536 else head)
                if len(body) >= 65536:
                    self._writer.write(body)
                await self._writer.drain()
        except (ConnectionError, ssl.SSLError, OSError) as error:
            raise UnavailableError(self.peer, "the connection has ended", "try again when it is back") from error

    async def note(self, value: Any, body: bytes | memoryview = b"") -> None:
        """Send a one-way message.

        Raises:
            UnavailableError: the connection has ended.
        """
        await self.send(Note(msgspec.Raw(self.encode_value(value))), body)

    async def call(self, value: Any, body: bytes | memoryview = b"", *, timeout_s: float | None) -> Any:
        """Ask and wait for the answer's message. As `call_with_body`, for answers without a body."""
        return (await self.call_with_body(value, body, timeout_s=timeout_s))[0]

    async def call_with_body(self, value: Any, body: bytes | memoryview = b"", *, timeout_s: float | None) -> tuple[Any, bytes]:
        """Ask and wait for the answer.

        Cancellation (and the timeout) sends a Cancel and forgets the call; whether the request took effect is then unknown.

        Raises:
            ArchitectError: what the peer reported, in its branch.
            UnavailableError: the request could not be sent.
            OutcomeUnknownError: it was sent, and the connection ended or the time was over before an answer.
        """
        number, opened = self._open()
        try:
            await self.send(Request(number, msgspec.Raw(self.encode_value(value))), body)
            async with asyncio.timeout(timeout_s):
                return await opened.answer
        except TimeoutError as error:
            await self._cancel(number)
            raise OutcomeUnknownError(
                self.peer, f"no answer to {type(value).__name__} in {timeout_s} s", "see whether it took effect before a retry"
            ) from error
        except asyncio.CancelledError:
            await self._cancel(number)
            raise
        finally:
            self._calls.pop(number, None)
            _silence(opened.answer)

    async def stream(self, value: Any, body: bytes | memoryview = b"") -> AsyncGenerator[tuple[Any, bytes]]:
        """Ask and yield the answer's items, then the answer itself as the last one.

        Leaving the iteration early cancels the call.

        Raises: as `call_with_body`.
        """
        number, opened = self._open()
        opened.streams = True
        try:
            await self.send(Request(number, msgspec.Raw(self.encode_value(value))), body)
            while (item := await opened.queue.get()) is not None:
                yield item
                self._note_taken(number, opened)
            yield await opened.answer
        finally:
            try:
                if not opened.answer.done():
                    await self._cancel(number)
            finally:
                self._calls.pop(number, None)
                _silence(opened.answer)

    def _open(self) -> tuple[int, _OpenCall]:
        if self._closed:
            raise UnavailableError(self.peer, "the connection has ended", "try again when it is back")
        if len(self._calls) >= OPEN_CALLS_MAX:
            raise UnavailableError(self.peer, f"over {OPEN_CALLS_MAX} calls are open", "wait for some to end")
        number, self._next_call = self._next_call, self._next_call + 1
        opened = self._calls[number] = _OpenCall()
        return number, opened

    async def _cancel(self, number: int) -> None:
        with contextlib.suppress(UnavailableError, TimeoutError):
            async with asyncio.timeout(1):
                await asyncio.shield(self.send(Cancel(number)))

    def close(self) -> None:
        """End the connection; `run` returns soon after, also if no packet reaches the peer any more. Idempotent."""
        self._writer.close()
        # TLS would wait half a minute for the peer's goodbye.
        asyncio.get_running_loop().call_later(CLOSE_GRACE_S, self._writer.transport.abort)

    def _end(self) -> None:
        self._closed = True
        self._writer.close()
        for opened in self._calls.values():
            if not opened.answer.done():
                opened.answer.set_exception(
                    OutcomeUnknownError(
                        self.peer, "the connection ended before the answer", "see whether it took effect before a retry"
                    )
                )
            if opened.streams:
                with contextlib.suppress(asyncio.QueueFull):
                    opened.queue.put_nowait(None)


def _silence(answer: asyncio.Future[Any]) -> None:
    """Mark an answer that nobody waits for any more as seen, so that asyncio does not log it."""
    if answer.done() and not answer.cancelled():
        answer.exception()
    else:
        answer.cancel()


async def open_channel(
    address: str | tuple[str, int],
    messages: Any,
    handler: Handler | None,
    peer: str,
    *,
    tls: ssl.SSLContext | None = None,
    server_name: str = "",
    timeout_s: float = 5.0,
) -> Channel:
    """Connect to a unix socket path, or (host, port) with TLS, and return the channel; the caller runs it.

    Raises:
        UnavailableError: nobody answers there, or TLS is refused; names the peer.
    """
    try:
        async with asyncio.timeout(timeout_s):
            if isinstance(address, str):
                reader, writer = await asyncio.open_unix_connection(address, limit=WRITE_BUFFER_BYTES_MAX)
            else:
                reader, writer = await asyncio.open_connection(
                    *address, ssl=tls, server_hostname=server_name if tls else None, limit=WRITE_BUFFER_BYTES_MAX
                )
    except (OSError, ssl.SSLError, TimeoutError) as error:
        cause = "no answer in time" if isinstance(error, TimeoutError) else str(error)
        raise UnavailableError(peer, f"cannot connect ({cause})", "see that it runs and can be reached") from error
    return Channel(reader, writer, messages, handler, peer)


def peer_name(writer: asyncio.StreamWriter) -> str:
    """The common name in the peer's TLS certificate (`agent:aws-1`), or "" without TLS."""
    certificate = cast("ssl.SSLObject | None", writer.get_extra_info("ssl_object"))
    details = certificate.getpeercert() if certificate is not None else None
    subject = cast("tuple[tuple[tuple[str, str], ...], ...]", (details or {}).get("subject", ()))
    return next((value for group in subject for key, value in group if key == "commonName"), "")
