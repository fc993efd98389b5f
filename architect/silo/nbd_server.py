"""NBD server of one file, read-only: where a guest at the target reads what it lacks of its disk, the source's overlay.

It runs in the memory process, because that lives on when the source's QEMU has died; whatever else a post-copy needs of the source
(its pages, the connections) is there, too. The client is the target's QEMU with who knows what guest: nothing that it says is
believed, every length is bounded, and what is not understood ends the connection.

Protocol (https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md): fixed newstyle negotiation, any export name means the
file, simple replies. Commands: READ, DISC. Reads past the file's end, up to the next sector, are zeros.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from enum import IntEnum

from architect.errors import HostError, PeerError
from architect.model.sizes import round_up

SECTOR_BYTES = 512
READ_BYTES_MAX = 2 << 20
OPTION_BYTES_MAX = 8192
OPTIONS_MAX = 32

_GREETING = struct.Struct(">8s8sH")
_MAGIC, _OPTION_MAGIC = b"NBDMAGIC", b"IHAVEOPT"
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_OPTION = struct.Struct(">8sII")
_OPTION_REPLY = struct.Struct(">QIII")
_OPTION_REPLY_MAGIC = 0x3E889045565A9
_ACK, _ABOUT, _UNSUPPORTED = 1, 3, 0x80000001
_ABOUT_EXPORT, _ABOUT_BLOCKS = struct.Struct(">HQH"), struct.Struct(">HIII")
_EXPORT = struct.Struct(">QH")
_HAS_FLAGS, _READ_ONLY = 1, 2
_FLAGS = _HAS_FLAGS | _READ_ONLY
_REQUEST = struct.Struct(">IHHQQI")
_REQUEST_MAGIC = 0x25609513
_READ, _DISCONNECT = 0, 2
_REPLY = struct.Struct(">IIQ")
_REPLY_MAGIC = 0x67446698
_BLOCK_BYTES_PREFERRED = 4096


class _Option(IntEnum):
    EXPORT_NAME = 1
    ABORT = 2
    INFO = 6
    GO = 7


Receive = Callable[[int], bytes]
"""Returns exactly so many bytes; raises OSError when the connection has ended."""
Send = Callable[[memoryview], None]


class ServedFileError(HostError):
    """The file cannot be read."""


class NbdError(PeerError):
    """A client that does not keep to the protocol."""


class ServedFile:
    """A file that nobody writes, offered to any number of connections. Its size is that of the moment it was opened."""

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ServedFileError(f"disk {path}", f"cannot be read ({error.strerror})", "see the VM's folder") from error
        self.size_bytes = round_up(os.fstat(self._descriptor).st_size, SECTOR_BYTES)

    def serve(self, receive: Receive, send: Send) -> None:
        """Serve one connection, until its client says that it is done.

        Raises:
            NbdError: the client breaks the protocol.
            OSError: the connection has ended.
        """
        # Of its own: after `close` the number may be another file's.
        descriptor = os.dup(self._descriptor)
        try:
            if _negotiate(self.size_bytes, receive, send):
                self._answer(descriptor, receive, send)
        finally:
            os.close(descriptor)

    def _answer(self, descriptor: int, receive: Receive, send: Send) -> None:
        buffer = memoryview(bytearray(_REPLY.size + READ_BYTES_MAX))
        while True:
            magic, _, command, cookie, offset, length = _REQUEST.unpack(receive(_REQUEST.size))
            if magic == _REQUEST_MAGIC and command == _DISCONNECT:
                return
            if magic != _REQUEST_MAGIC or command != _READ:
                raise NbdError(f"client of disk {self._path}", f"sent command {command}", "check that it is a QEMU that reads")
            if not 0 < length <= READ_BYTES_MAX or offset + length > self.size_bytes:
                error_number, length = errno.EINVAL, 0
            else:
                error_number = _read(descriptor, buffer[_REPLY.size : _REPLY.size + length], offset)
            _REPLY.pack_into(buffer, 0, _REPLY_MAGIC, error_number, cookie)
            send(buffer[: _REPLY.size + (0 if error_number else length)])

    def close(self) -> None:
        """Take no more connections; those that are served go on. Once."""
        os.close(self._descriptor)


def _read(descriptor: int, part: memoryview, offset: int) -> int:
    """Fill `part`, past the file's end with zeros; returns an error number, 0 for none."""
    try:
        while len(part):
            if (count := os.preadv(descriptor, [part], offset)) == 0:
                part[:] = bytes(len(part))
                return 0
            part, offset = part[count:], offset + count
    except OSError:
        return errno.EIO
    return 0


def _negotiate(size_bytes: int, receive: Receive, send: Send) -> bool:
    """Agree on the export; returns whether its commands follow."""
    send(memoryview(_GREETING.pack(_MAGIC, _OPTION_MAGIC, _FIXED_NEWSTYLE | _NO_ZEROES)))
    (client_flags,) = struct.unpack(">I", receive(4))
    for _ in range(OPTIONS_MAX):
        magic, option, length = _OPTION.unpack(receive(_OPTION.size))
        if magic != _OPTION_MAGIC or length > OPTION_BYTES_MAX:
            raise NbdError("client of a disk", "sent no NBD option", "check that it is a QEMU")
        receive(length)  # the export's name, and what of it is asked: it is told all
        match option:
            case _Option.EXPORT_NAME:
                send(memoryview(_EXPORT.pack(size_bytes, _FLAGS) + bytes(0 if client_flags & _NO_ZEROES else 124)))
                return True
            case _Option.ABORT:
                send(_reply(option, _ACK))
                return False
            case _Option.INFO | _Option.GO:
                send(_reply(option, _ABOUT, _ABOUT_EXPORT.pack(0, size_bytes, _FLAGS)))
                send(_reply(option, _ABOUT, _ABOUT_BLOCKS.pack(3, 1, _BLOCK_BYTES_PREFERRED, READ_BYTES_MAX)))
                send(_reply(option, _ACK))
                if option == _Option.GO:
                    return True
            case _:  # structured replies, TLS, meta contexts: clients do without
                send(_reply(option, _UNSUPPORTED))
    raise NbdError("client of a disk", f"sent {OPTIONS_MAX} NBD options", "check that it is a QEMU")


def _reply(option: int, kind: int, data: bytes = b"") -> memoryview:
    return memoryview(_OPTION_REPLY.pack(_OPTION_REPLY_MAGIC, option, kind, len(data)) + data)
