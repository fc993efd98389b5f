"""NBD server of one file, read-only: where a guest at the target reads what it lacks of its disk, the source's overlay.

It runs in the memory process, because that lives on when the source's QEMU has died; whatever else a post-copy needs of the source
(its pages, the connections) is there, too. The client is the target's QEMU with who knows what guest: nothing that it says is
believed, every length is bounded, and what is not understood ends the connection.

Of `wire.nbd`: any export name means the file; commands are READ and DISCONNECT. Reads past the file's end, up to the next sector,
are zeros.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from architect.errors import HostError
from architect.model.sizes import round_up
from architect.wire import nbd

SECTOR_BYTES = 512
BLOCK_BYTES = 4096
READ_BYTES_MAX = 2 << 20
OPTIONS_MAX = 32

Receive = Callable[[int], bytes]
"""Returns exactly so many bytes; raises OSError when the connection has ended."""
Send = Callable[[memoryview], None]


class ServedFileError(HostError):
    """The file cannot be read."""


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
            nbd.NbdError: the client breaks the protocol.
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
        buffer = memoryview(bytearray(nbd.REPLY_BYTES + READ_BYTES_MAX))
        while True:
            request = nbd.parse_request(receive(nbd.REQUEST_BYTES))
            if request.command == nbd.Command.DISCONNECT:
                return
            if request.command != nbd.Command.READ:
                cause = f"sent command {request.command}"
                raise nbd.NbdError(f"client of disk {self._path}", cause, "check that it is a QEMU that reads")
            end = nbd.REPLY_BYTES + request.length
            if not 0 < request.length <= READ_BYTES_MAX or request.offset + request.length > self.size_bytes:
                error_number = errno.EINVAL
            else:
                error_number = _read(descriptor, buffer[nbd.REPLY_BYTES : end], request.offset)
            buffer[: nbd.REPLY_BYTES] = nbd.pack_reply(nbd.Reply(error_number, request.cookie))
            send(buffer[: nbd.REPLY_BYTES if error_number else end])

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
    send(memoryview(nbd.pack_greeting()))
    wants_zeroes = nbd.parse_flags(receive(nbd.FLAGS_BYTES))
    for _ in range(OPTIONS_MAX):
        header = nbd.parse_option(receive(nbd.OPTION_BYTES))
        receive(header.length)  # the export's name, and what of it is asked: it is told all
        match header.option:
            case nbd.Option.EXPORT_NAME:
                send(memoryview(nbd.pack_export(size_bytes, has_zeroes=wants_zeroes)))
                return True
            case nbd.Option.ABORT:
                send(_reply(header.option, nbd.OptionAnswer.ACK))
                return False
            case nbd.Option.INFO | nbd.Option.GO:
                for about in (nbd.pack_about_export(size_bytes), nbd.pack_about_block_sizes(BLOCK_BYTES, READ_BYTES_MAX)):
                    send(_reply(header.option, nbd.OptionAnswer.ABOUT, about))
                send(_reply(header.option, nbd.OptionAnswer.ACK))
                if header.option == nbd.Option.GO:
                    return True
            case _:  # structured replies, TLS, meta contexts: clients do without
                send(_reply(header.option, nbd.OptionAnswer.UNSUPPORTED))
    raise nbd.NbdError("client of a disk", f"sent {OPTIONS_MAX} NBD options", "check that it is a QEMU")


def _reply(option: int, answer: nbd.OptionAnswer, data: bytes = b"") -> memoryview:
    return memoryview(nbd.pack_option_reply(option, answer, data))
