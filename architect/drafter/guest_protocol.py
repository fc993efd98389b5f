"""The guest channel's frames: bytes in, values out. C side: native/init/protocol.h; prose: docs/protocols/guest-channel.md.

A frame is a header of 32 bytes (little-endian) and a payload of at most 64 KiB, under a CRC-32. Either side may have stopped in
the middle of a frame when the host changed, so a frame starts with a magic number and carries the session, a number that the host
draws for each connection: the decoder skips all that is not a whole frame of its session. Version: HELLO and READY carry
`PROTOCOL_VERSION`; both sides must have the same one.
"""

from __future__ import annotations

import enum
import struct
import zlib

import msgspec

from architect.errors import PeerError

PROTOCOL_VERSION = 1
FRAME_MAGIC = 0x31435241
PAYLOAD_BYTES_MAX = 64 * 1024
RECORD_BYTES_MAX = 16 * 1024
EXEC_INPUT_BYTES_MAX = 64 * 1024
EXEC_SESSIONS_MAX = 32
POSITION_OF_GUEST = (1 << 64) - 1
FLAG_END_OF_INPUT = 1

HEADER = struct.Struct("<IIIBBHIQI")
_MAGIC_BYTES = struct.pack("<I", FRAME_MAGIC)
_CRC_BYTES = 4

# Sent before HELLO: completes (and so spoils) whatever frame the predecessor on this channel left half sent.
RESET_PADDING = bytes(HEADER.size + PAYLOAD_BYTES_MAX)


class FrameType(enum.IntEnum):
    """What a frame is. Below 64 from the host, from 64 on from the guest."""

    HELLO = 1
    CONFIGURE = 2
    START = 3
    SIGNAL = 4
    CLOCK = 5
    HOOK = 6
    FREEZE = 7
    PING = 8
    POWEROFF = 9
    LOG_ACK = 10
    EXEC_CLOSE = 11
    EXEC_START = 12
    EXEC_ATTACH = 13
    EXEC_INPUT = 14
    EXEC_RESIZE = 15
    EXEC_OUTPUT_ACK = 16
    READY = 64
    ANSWER = 65
    PONG = 66
    LOG = 67
    EXIT = 68
    EXEC_OUTPUT = 69
    EXEC_INPUT_ACK = 70
    EXEC_EXIT = 71


class GuestProtocolError(PeerError):
    """The guest sent what the protocol does not allow."""

    code = "guest-protocol"


class GuestFrame(msgspec.Struct, frozen=True):
    """One frame. `stream` is an exec session's id (0: the workload) or a log stream, `seq` a request's id or a position."""

    type: FrameType
    payload: bytes = b""
    stream: int = 0
    seq: int = 0
    flags: int = 0


def encode_frame(frame: GuestFrame, session: int) -> bytes:
    """The frame's bytes. Its payload is at most `PAYLOAD_BYTES_MAX` long; whoever makes payloads sees to that."""
    assert len(frame.payload) <= PAYLOAD_BYTES_MAX, f"{frame.type.name}: payload of {len(frame.payload)} bytes"
    fields = (FRAME_MAGIC, len(frame.payload), session, frame.type, frame.flags, 0, frame.stream, frame.seq)
    crc = zlib.crc32(frame.payload, zlib.crc32(HEADER.pack(*fields, 0)))
    return HEADER.pack(*fields, crc) + frame.payload


class FrameDecoder:
    """Cuts received bytes into the frames of one session; what belongs to none is skipped and counted.

    :param session: the session whose frames are wanted.
    :param guest: how errors name the other side.
    """

    def __init__(self, session: int, guest: str) -> None:
        self._session = session
        self._guest = guest
        self._buffer = bytearray()
        self._in_session = False
        self.skipped_bytes = 0

    def feed(self, data: bytes) -> list[GuestFrame]:
        """The frames that are whole now.

        Raises:
            GuestProtocolError: after the session's first frame, something that is not a frame of it.
        """
        self._buffer += data
        frames: list[GuestFrame] = []
        while (frame := self._next()) is not None:
            frames.append(frame)
        return frames

    def _next(self) -> GuestFrame | None:
        while len(self._buffer) >= HEADER.size:
            magic, length, session, kind, flags, _, stream, seq, crc = HEADER.unpack_from(self._buffer)
            if magic != FRAME_MAGIC or session != self._session or length > PAYLOAD_BYTES_MAX:
                self._skip("not a frame of this session")
                continue
            end = HEADER.size + length
            if len(self._buffer) < end:
                return None
            payload = bytes(memoryview(self._buffer)[HEADER.size : end])
            header = bytes(memoryview(self._buffer)[: HEADER.size - _CRC_BYTES]) + bytes(_CRC_BYTES)
            if zlib.crc32(payload, zlib.crc32(header)) != crc:
                self._skip("a frame whose checksum is wrong")
                continue
            del self._buffer[:end]
            self._in_session = True
            return GuestFrame(self._known(kind), payload, stream, seq, flags)
        return None

    def _known(self, kind: int) -> FrameType:
        try:
            return FrameType(kind)
        except ValueError as error:
            raise GuestProtocolError(self._guest, f"sent a frame of unknown type {kind}", "check its initramfs") from error

    def _skip(self, what: str) -> None:
        """Before the session's first frame there may be rests of an older one; behind it there may not."""
        if self._in_session:
            raise GuestProtocolError(self._guest, f"sent {what}", "the channel is opened again")
        next_magic = self._buffer.find(_MAGIC_BYTES, 1)
        # The last three bytes may be the start of a magic number.
        count = next_magic if next_magic > 0 else max(1, len(self._buffer) - len(_MAGIC_BYTES) + 1)
        self.skipped_bytes += count
        del self._buffer[:count]
