"""The host's connection to a guest: connects, reconnects, keeps a session, matches answers to requests.

The socket is QEMU's end of the virtio-serial port; QEMU serves one client at a time, and it or the guest may be away at any time.
Each connection is a session with a number of its own. A request has a random id and is sent again in every new session until it is
answered: the guest does it once. What the guest sends otherwise goes to the `GuestListener`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import Protocol

import msgspec

from architect.drafter.guest_payloads import ANSWER, GuestReady, pack_hello, unpack, unpack_ready
from architect.drafter.guest_protocol import (
    PROTOCOL_VERSION,
    RESET_PADDING,
    FrameDecoder,
    FrameType,
    GuestFrame,
    GuestProtocolError,
    encode_frame,
)
from architect.errors import ArchitectError, ConflictError, IncompatibleError, UnavailableError

CONNECT_RETRY_S = 0.05
HELLO_REPEAT_S = 1.0
READ_BYTES = 256 * 1024
REQUESTS_PENDING_MAX = 48


class GuestSilentError(UnavailableError):
    """The guest did not answer within the deadline."""

    code = "guest-silent"


class GuestRefusedError(ConflictError):
    """The guest cannot do what it was asked; `status` is its errno."""

    code = "guest-refused"

    def __init__(self, thing: str, cause: str, next_step: str, status: int = 0) -> None:
        super().__init__(thing, cause, next_step)
        self.status = status


class GuestListener(Protocol):
    """What a link tells its owner. Both are awaited in order; while one runs nothing more is read from the guest."""

    def log_position_wanted(self) -> int:
        """The last log record that this side has; asked at the start of each session."""
        ...

    async def session_began(self, ready: GuestReady) -> None:
        """The guest has answered HELLO."""
        ...

    async def frames_came(self, frames: list[GuestFrame]) -> None:
        """Frames that are no answers.

        Raises:
            GuestProtocolError: one of them is not allowed.
        """
        ...


class _Pending(msgspec.Struct):
    frame: GuestFrame
    answer: asyncio.Future[GuestFrame]


class GuestLink:
    """One guest's connection; `run` drives it.

    :param socket_path: the unix socket at which QEMU serves the port.
    :param guest: how errors name the guest.
    """

    def __init__(self, socket_path: Path, guest: str, listener: GuestListener) -> None:
        self._path = socket_path
        self.guest = guest
        self._listener = listener
        self._writer: asyncio.StreamWriter | None = None
        self._session = 0
        self._pending: dict[int, _Pending] = {}
        self._ready = asyncio.Event()
        self._trouble: ArchitectError | None = None

    async def run(self) -> None:
        """Connect, serve, reconnect, until cancelled; ends by itself only with what the listener raises.

        Raises:
            ArchitectError: what the listener raised, protocol errors aside: those end the connection, which is opened again.
        """
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(str(self._path), limit=READ_BYTES)
            except OSError:
                await asyncio.sleep(CONNECT_RETRY_S)
                continue
            try:
                await self._serve(reader, writer)
            except OSError:
                pass
            except GuestProtocolError as error:
                self._fail_pending(error)
            finally:
                self._ready.clear()
                self._writer = None
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
            await asyncio.sleep(CONNECT_RETRY_S)

    async def wait_ready(self, timeout_s: float) -> None:
        """Wait until a session is there.

        Raises:
            GuestSilentError: there is none after `timeout_s`.
            IncompatibleError: the guest speaks another version.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._ready.wait()
        except TimeoutError as error:
            if isinstance(self._trouble, IncompatibleError):
                raise self._trouble from error
            raise self._silent("did not report ready", timeout_s) from error

    async def request(self, kind: FrameType, payload: bytes, timeout_s: float, stream: int = 0) -> GuestFrame:
        """Have the guest do something once, and wait for its answer, over reconnections.

        Raises:
            GuestSilentError: no answer within `timeout_s`; it may have been done.
            GuestRefusedError: the guest answered with an error.
            GuestProtocolError: it answered with nonsense.
        """
        if len(self._pending) >= REQUESTS_PENDING_MAX:
            raise self._silent(f"has {REQUESTS_PENDING_MAX} requests unanswered", 0)
        request_id = int.from_bytes(os.urandom(8), "little") or 1
        pending = _Pending(GuestFrame(kind, payload, stream, request_id), asyncio.get_running_loop().create_future())
        self._pending[request_id] = pending
        try:
            if self._ready.is_set():
                self.send(pending.frame)
            async with asyncio.timeout(timeout_s):
                answer = await pending.answer
        except TimeoutError as error:
            raise self._silent(f"did not answer {kind.name}", timeout_s) from error
        finally:
            del self._pending[request_id]
        if answer.type is FrameType.ANSWER:
            self._raise_refusal(kind, answer)
        return answer

    def send(self, frame: GuestFrame) -> None:
        """Send a frame in this session; without one it is dropped, as it would be on the way."""
        if self._writer is not None:
            self._writer.write(encode_frame(frame, self._session))

    async def drain(self) -> None:
        """Wait until the socket takes more."""
        if self._writer is not None:
            with contextlib.suppress(OSError):
                await self._writer.drain()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._session = int.from_bytes(os.urandom(4), "little") or 1
        self._writer = writer
        decoder = FrameDecoder(self._session, self.guest)
        writer.write(RESET_PADDING)
        self._say_hello()
        while True:
            try:
                async with asyncio.timeout(None if self._ready.is_set() else HELLO_REPEAT_S):
                    data = await reader.read(READ_BYTES)
            except TimeoutError:
                self._say_hello()
                continue
            if not data:
                return
            await self._take(decoder.feed(data))

    def _say_hello(self) -> None:
        self.send(GuestFrame(FrameType.HELLO, pack_hello(self._listener.log_position_wanted())))

    async def _take(self, frames: list[GuestFrame]) -> None:
        others: list[GuestFrame] = []
        for frame in frames:
            match frame.type:
                case FrameType.READY:
                    await self._begin(unpack_ready(frame, self.guest))
                case FrameType.ANSWER | FrameType.PONG:
                    self._answer(frame)
                case _:
                    others.append(frame)
        if others:
            await self._listener.frames_came(others)

    async def _begin(self, ready: GuestReady) -> None:
        if self._ready.is_set():
            return  # The answer to a HELLO that was repeated too early.
        if ready.version != PROTOCOL_VERSION:
            self._trouble = IncompatibleError(
                self.guest, f"speaks version {ready.version} of the guest channel, not {PROTOCOL_VERSION}", "start it anew"
            )
            self._fail_pending(self._trouble)
            return
        self._ready.set()
        await self._listener.session_began(ready)
        for pending in self._pending.values():
            self.send(pending.frame)

    def _answer(self, frame: GuestFrame) -> None:
        pending = self._pending.get(frame.seq)
        if pending is not None and not pending.answer.done():
            pending.answer.set_result(frame)

    def _raise_refusal(self, kind: FrameType, answer: GuestFrame) -> None:
        (status,) = unpack(ANSWER, answer, self.guest)
        if status != 0:
            text = answer.payload[ANSWER.size :].decode(errors="replace") or os.strerror(status)
            raise GuestRefusedError(self.guest, f"cannot {kind.name}: {text}", "see its log", status)

    def _fail_pending(self, error: ArchitectError) -> None:
        self._trouble = error
        for pending in self._pending.values():
            if not pending.answer.done():
                pending.answer.set_exception(error)

    def _silent(self, what: str, timeout_s: float) -> GuestSilentError:
        trouble = f", last trouble: {self._trouble}" if self._trouble is not None else ""
        return GuestSilentError(self.guest, f"{what} within {timeout_s:g} s{trouble}", "see its console log")
