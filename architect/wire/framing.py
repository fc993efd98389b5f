"""Frames: how every channel of ours carries messages. Bytes in, values out; no I/O here.

A frame is ``u32 head_bytes | u32 body_bytes | head | body``, integers big-endian. The head is a MessagePack map of one message of
the channel's tagged union (field ``type`` names the message, unknown fields are refused); the body is raw bytes (extents, device
state, log data) so that bulk is never copied through the codec. Both lengths are bounded before anything is allocated.

Versions: the first message on every channel carries `PROTOCOL_VERSION`; both sides must have the same one.
"""

from __future__ import annotations

import struct
import threading
from typing import Any, Generic, TypeVar

import msgspec

from architect.errors import PeerError

PROTOCOL_VERSION = 3
HEAD_BYTES_MAX = 1 << 20
BODY_BYTES_MAX = 4 << 20
PREFIX = struct.Struct(">II")
CHECK_VERSION = "check that it is an Architect of this version"
"""The next step in an error, where a peer does not speak as we do."""

MessageT = TypeVar("MessageT")
_learning = threading.Lock()


class FrameError(PeerError):
    """A frame that is none: over its bounds, not MessagePack, or not a message of this channel."""

    code = "frame"


class FrameCodec(Generic[MessageT]):
    """Encodes and decodes the messages of one channel.

    :param union: the channel's message structs (tagged, frozen, `forbid_unknown_fields`).
    :param peer: how errors name the other side.
    """

    def __init__(self, union: Any, peer: str) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        # msgspec learns a struct when its first decoder is made, and shows it to other threads before it knows all of it: a decoder
        # that another thread makes meanwhile ends the process by a NULL pointer (0.22, `mpack_decode`).
        with _learning:
            self._decoder = msgspec.msgpack.Decoder(union)
        self.peer = peer

    def encode(self, message: MessageT, body_bytes: int = 0) -> bytes:
        """The prefix and head of a frame whose body of `body_bytes` bytes the caller sends right behind it."""
        head = self._encoder.encode(message)
        assert len(head) <= HEAD_BYTES_MAX, f"{type(message).__name__}: head of {len(head)} bytes"
        assert body_bytes <= BODY_BYTES_MAX, f"{type(message).__name__}: body of {body_bytes} bytes"
        return PREFIX.pack(len(head), body_bytes) + head

    def lengths(self, prefix: bytes) -> tuple[int, int]:
        """Head and body length of a frame's 8-byte prefix.

        Raises:
            FrameError: one of them is over its bound.
        """
        head_bytes, body_bytes = PREFIX.unpack(prefix)
        if not 0 < head_bytes <= HEAD_BYTES_MAX or body_bytes > BODY_BYTES_MAX:
            raise FrameError(self.peer, f"sent a frame of {head_bytes} + {body_bytes} bytes", CHECK_VERSION)
        return head_bytes, body_bytes

    def decode(self, head: bytes | memoryview) -> MessageT:
        """The message in a frame's head.

        Raises:
            FrameError: it is not a message of this channel.
        """
        try:
            message: MessageT = self._decoder.decode(head)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise FrameError(self.peer, f"sent what is no message of this channel ({error})", CHECK_VERSION) from error
        return message
