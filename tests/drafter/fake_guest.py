"""A guest that speaks the channel's protocol from a script, at a unix socket, for tests of the host's end."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from architect.drafter.guest_payloads import ANSWER, LOG, PONG, READY
from architect.drafter.guest_protocol import (
    FRAME_MAGIC,
    HEADER,
    PROTOCOL_VERSION,
    FrameType,
    GuestFrame,
    encode_frame,
)

Answerer = Callable[["FakeGuest", GuestFrame], None]


class FakeGuest:
    """Answers HELLO with READY, requests through `answer`, and keeps what it received in `received`."""

    def __init__(self) -> None:
        self.version = PROTOCOL_VERSION
        self.log_acked = 0
        self.log_next = 1
        self.exec_ids: tuple[int, ...] = ()
        self.received: list[GuestFrame] = []
        self.sessions: list[int] = []
        self.answer: Answerer = FakeGuest.accept
        self.on_hello: Callable[[FakeGuest], None] = lambda guest: None
        self._writer: asyncio.StreamWriter | None = None
        self._arrived = asyncio.Event()

    def accept(self, frame: GuestFrame) -> None:
        """Answers every request with success."""
        if frame.type is FrameType.PING:
            self.send(GuestFrame(FrameType.PONG, PONG.pack(1, 2, 0), seq=frame.seq))
        elif frame.type not in (FrameType.LOG_ACK, FrameType.EXEC_OUTPUT_ACK, FrameType.EXEC_INPUT):
            self.send(GuestFrame(FrameType.ANSWER, ANSWER.pack(0), seq=frame.seq))

    def refuse(self, frame: GuestFrame) -> None:
        """Answers every request with ESRCH."""
        self.send(GuestFrame(FrameType.ANSWER, ANSWER.pack(3) + b"no such thing", seq=frame.seq))

    def ignore(self, frame: GuestFrame) -> None:
        """Answers nothing."""

    def send(self, frame: GuestFrame) -> None:
        assert self._writer is not None
        self._writer.write(encode_frame(frame, self.sessions[-1]))

    def send_log(self, seq: int, text: bytes, stream: int = 1) -> None:
        self.send(GuestFrame(FrameType.LOG, LOG.pack(0) + text, stream, seq))

    def cut(self) -> None:
        assert self._writer is not None
        self._writer.transport.abort()

    async def wait_received(self, kind: FrameType, count: int = 1, seq: int | None = None) -> GuestFrame:
        async with asyncio.timeout(5):
            while len(found := [frame for frame in self.received if frame.type is kind and seq in (None, frame.seq)]) < count:
                self._arrived.clear()
                await self._arrived.wait()
        return found[count - 1]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        try:
            while True:
                await self._take(await self._read_frame(reader))
        except (asyncio.IncompleteReadError, OSError):
            return
        finally:
            writer.close()

    async def _read_frame(self, reader: asyncio.StreamReader) -> GuestFrame:
        head = await reader.readexactly(HEADER.size)
        while struct.unpack_from("<I", head)[0] != FRAME_MAGIC:
            head = head[1:] + await reader.readexactly(1)
        _, length, session, kind, flags, _, stream, seq, _ = HEADER.unpack(head)
        payload = await reader.readexactly(length)
        if kind == FrameType.HELLO:
            self.sessions.append(session)
        return GuestFrame(FrameType(kind), payload, stream, seq, flags)

    async def _take(self, frame: GuestFrame) -> None:
        self.received.append(frame)
        if frame.type is FrameType.HELLO:
            fixed = READY.pack(self.version, 0, self.log_acked, self.log_next, 0, 0, len(self.exec_ids))
            self.send(GuestFrame(FrameType.READY, fixed + struct.pack(f"<{len(self.exec_ids)}I", *self.exec_ids)))
            self.on_hello(self)
        else:
            self.answer(self, frame)
        self._arrived.set()


@asynccontextmanager
async def fake_guest(socket_path: Path) -> AsyncIterator[FakeGuest]:
    """A fake guest that listens."""
    guest = FakeGuest()
    server = await asyncio.start_unix_server(guest.serve, str(socket_path))
    try:
        yield guest
    finally:
        server.close()
