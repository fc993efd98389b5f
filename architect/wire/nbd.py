"""NBD, as much of it as we speak: bytes in, values out; no I/O here. The server (`silo.nbd_server`) and the client
(`drafter.remote_index`) share it; the other end of both is a QEMU.

::

    server                                  client
    greeting                      →
                                  ←         flags
                                  ←         option, its data                       once or more
    option replies, their data    →                                                EXPORT_NAME: the export instead, always the last
                                  ←         request (READ, DISCONNECT)             any number under way
    reply, data of a READ         →                                                in any order, told apart by the cookie

Fixed newstyle negotiation, simple replies (https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md). Every header has
a fixed length, `*_BYTES`: a reader takes so many bytes and has them parsed. What takes bytes raises `NbdError` where they are not
of that length and form, or announce more than anyone needs. Whether a request can be met is the server's to say.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Any

import msgspec

from architect.errors import PeerError

OPTION_BYTES_MAX = 8192

_GREETING = struct.Struct(">8s8sH")
_FLAGS = struct.Struct(">I")
_OPTION = struct.Struct(">8sII")
_OPTION_REPLY = struct.Struct(">QIII")
_ABOUT_EXPORT = struct.Struct(">HQH")
_ABOUT_BLOCKS = struct.Struct(">HIII")
_EXPORT = struct.Struct(">QH")
_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")

GREETING_BYTES, FLAGS_BYTES, OPTION_BYTES, EXPORT_BYTES, REQUEST_BYTES, REPLY_BYTES = (
    layout.size for layout in (_GREETING, _FLAGS, _OPTION, _EXPORT, _REQUEST, _REPLY)
)

_MAGIC, _OPTION_MAGIC, _OPTION_REPLY_MAGIC = b"NBDMAGIC", b"IHAVEOPT", 0x3E889045565A9
_REQUEST_MAGIC, _REPLY_MAGIC = 0x25609513, 0x67446698
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_HANDSHAKE_FLAGS = _FIXED_NEWSTYLE | _NO_ZEROES
_READ_ONLY_EXPORT = 1 | 2  # has flags, read-only
_OLD_CLIENT_ZEROES = bytes(124)


class Option(IntEnum):
    """What a client asks for before its requests."""

    EXPORT_NAME = 1
    ABORT = 2
    INFO = 6
    GO = 7


class OptionAnswer(IntEnum):
    """What a reply to an option is."""

    ACK = 1
    ABOUT = 3
    UNSUPPORTED = 0x80000001


class _About(IntEnum):
    """What an ABOUT tells."""

    EXPORT = 0
    BLOCK_SIZES = 3


class Command(IntEnum):
    """What a request asks for."""

    READ = 0
    DISCONNECT = 2


class OptionHeader(msgspec.Struct, frozen=True):
    """An option, known or not, and how many bytes of data follow it."""

    option: int
    length: int


class Request(msgspec.Struct, frozen=True):
    """A request, its command known or not."""

    command: int
    cookie: int
    offset: int
    length: int


class Reply(msgspec.Struct, frozen=True):
    """The reply to the request with that cookie. `error`: an errno, 0 for none; then the data of a READ follows."""

    error: int
    cookie: int


class NbdError(PeerError):
    """The other end does not keep to the protocol."""

    code = "nbd"


def pack_greeting() -> bytes:
    """The server's first bytes."""
    return _GREETING.pack(_MAGIC, _OPTION_MAGIC, _HANDSHAKE_FLAGS)


def check_greeting(data: bytes) -> None:
    """Take a server's first bytes."""
    magic, option_magic, flags = _unpack(_GREETING, data, "greeting")
    _check((magic, option_magic) == (_MAGIC, _OPTION_MAGIC), "greeting", "is of no NBD server")
    _check(flags & _HANDSHAKE_FLAGS == _HANDSHAKE_FLAGS, "greeting", f"offers no fixed newstyle without zeroes (flags {flags})")


def pack_choice(export: str) -> bytes:
    """All that a client says before its requests: its flags, and the export that it wants."""
    name = export.encode()
    return _FLAGS.pack(_HANDSHAKE_FLAGS) + _OPTION.pack(_OPTION_MAGIC, Option.EXPORT_NAME, len(name)) + name


def parse_flags(data: bytes) -> bool:
    """Whether the client wants the zeroes behind an export."""
    return not _unpack(_FLAGS, data, "flags")[0] & _NO_ZEROES


def parse_option(data: bytes) -> OptionHeader:
    """An option's header."""
    magic, option, length = _unpack(_OPTION, data, "option")
    _check(magic == _OPTION_MAGIC, "option", "does not begin as one")
    _check(length <= OPTION_BYTES_MAX, "option", f"has {length} bytes of data, over {OPTION_BYTES_MAX}")
    return OptionHeader(option, length)


def pack_option_reply(option: int, answer: OptionAnswer, data: bytes = b"") -> bytes:
    """A reply to an option, with its data."""
    return _OPTION_REPLY.pack(_OPTION_REPLY_MAGIC, option, answer, len(data)) + data


def pack_about_export(size_bytes: int) -> bytes:
    """An ABOUT's data: the size of an export that can only be read."""
    return _ABOUT_EXPORT.pack(_About.EXPORT, size_bytes, _READ_ONLY_EXPORT)


def pack_about_block_sizes(preferred_bytes: int, max_bytes: int) -> bytes:
    """An ABOUT's data: how long requests should and may be; they may begin anywhere."""
    return _ABOUT_BLOCKS.pack(_About.BLOCK_SIZES, 1, preferred_bytes, max_bytes)


def pack_export(size_bytes: int, *, has_zeroes: bool) -> bytes:
    """The answer to EXPORT_NAME: the size of an export that can only be read."""
    return _EXPORT.pack(size_bytes, _READ_ONLY_EXPORT) + (_OLD_CLIENT_ZEROES if has_zeroes else b"")


def parse_export(data: bytes) -> int:
    """The size of the export in bytes."""
    return int(_unpack(_EXPORT, data, "export")[0])


def pack_request(request: Request) -> bytes:
    """A request."""
    return _REQUEST.pack(_REQUEST_MAGIC, 0, request.command, request.cookie, request.offset, request.length)


def parse_request(data: bytes) -> Request:
    """A request."""
    magic, _, command, cookie, offset, length = _unpack(_REQUEST, data, "request")
    _check(magic == _REQUEST_MAGIC, "request", "does not begin as one")
    return Request(command, cookie, offset, length)


def pack_reply(reply: Reply) -> bytes:
    """The header of a reply."""
    return _REPLY.pack(_REPLY_MAGIC, reply.error, reply.cookie)


def parse_reply(data: bytes) -> Reply:
    """The header of a reply."""
    magic, error, cookie = _unpack(_REPLY, data, "reply")
    _check(magic == _REPLY_MAGIC, "reply", "does not begin as one")
    return Reply(error, cookie)


def _unpack(layout: struct.Struct, data: bytes, what: str) -> tuple[Any, ...]:
    _check(len(data) == layout.size, what, f"has {len(data)} bytes instead of {layout.size}")
    return layout.unpack(data)


def _check(holds: bool, what: str, cause: str) -> None:
    if not holds:
        raise NbdError(f"NBD {what}", cause, "check that a QEMU is at the other end")
