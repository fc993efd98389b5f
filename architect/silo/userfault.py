"""userfaultfd: the descriptor's requests, and the fault messages read from it.

Sources: linux/userfaultfd.h and Documentation/admin-guide/mm/userfaultfd.rst. The descriptor belongs to another process's address
space (QEMU's); all addresses are QEMU's. Write-protect faults are asynchronous: the kernel resolves and records them, they never
arrive here.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

import numpy as np
import numpy.typing as npt

from architect.errors import HostError
from architect.silo.page_batch import install_pages

_API, _REGISTER, _WAKE, _WRITEPROTECT = 0xC018AA3F, 0xC020AA00, 0x8010AA02, 0xC018AA06
_NEW_FROM_DEVICE = 0xAA00
_API_NUMBER = 0xAA
_WRITEPROTECT_MODE_WP = 1
MODE_MISSING, MODE_WP = 1, 2
FEATURES = {"MISSING_SHMEM": 1 << 5, "WP_HUGETLBFS_SHMEM": 1 << 12, "WP_UNPOPULATED": 1 << 13, "WP_ASYNC": 1 << 15}
_ALL_FEATURES = sum(FEATURES.values())
_EVENT_PAGEFAULT = 0x12
_MESSAGE_BYTES = 32
_MESSAGES_MAX = 64
DEVICE = "/dev/userfaultfd"


class UserfaultError(HostError):
    """The kernel refused a userfaultfd request."""


def open_userfault() -> int:
    """A userfaultfd of this process's own address space (for the self-check)."""
    device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        return int(fcntl.ioctl(device, _NEW_FROM_DEVICE, os.O_CLOEXEC | os.O_NONBLOCK))
    finally:
        os.close(device)


def supported_features(uffd: int) -> int:
    """The kernel's feature bits; uses the descriptor up."""
    answer = bytearray(struct.pack("QQQ", _API_NUMBER, 0, 0))
    fcntl.ioctl(uffd, _API, answer)
    return int(struct.unpack_from("Q", answer, 8)[0])


class Userfault:
    """A userfaultfd and the requests that this project makes of it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def enable(self) -> None:
        """Agree on the interface. Idempotent: on a descriptor that has been enabled (by a process before us) nothing happens.

        Raises:
            UserfaultError: the kernel lacks a feature.
        """
        try:
            fcntl.ioctl(self.descriptor, _API, bytearray(struct.pack("QQQ", _API_NUMBER, _ALL_FEATURES, 0)))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise _refused("API", error) from error

    def register(self, start: int, length: int, mode: int) -> None:
        """Watch a range: `mode` is MODE_WP, or MODE_MISSING | MODE_WP."""
        try:
            fcntl.ioctl(self.descriptor, _REGISTER, bytearray(struct.pack("QQQQ", start, length, mode, 0)))
        except OSError as error:
            raise _refused("REGISTER", error) from error

    def write_protect(self, start: int, length: int) -> None:
        """Count all writes to the range from now on, also to pages that do not exist yet."""
        try:
            fcntl.ioctl(self.descriptor, _WRITEPROTECT, bytearray(struct.pack("QQQ", start, length, _WRITEPROTECT_MODE_WP)))
        except OSError as error:
            raise _refused("WRITEPROTECT", error) from error

    def install(self, mappings: npt.NDArray[np.int64], pages: npt.NDArray[np.int64], source: int) -> npt.NDArray[np.bool_]:
        """Make the absent ones of `pages` (ascending) present, write-protected, and wake who waits for them.

        Their bytes lie at our address `source`, one page behind the other. Returns which pages existed; they are left as they are.

        :param mappings: a row for each part of the memory, ascending: its first page, its address.

        Raises:
            UserfaultError: the range is not registered, or the other process is gone.
        """
        try:
            return install_pages(self.descriptor, mappings, pages, source)
        except OSError as error:
            raise _refused("COPY", error) from error

    def wake(self, start: int, length: int) -> None:
        """Let who waits in the range try again."""
        try:
            fcntl.ioctl(self.descriptor, _WAKE, struct.pack("QQ", start, length))
        except OSError as error:
            raise _refused("WAKE", error) from error

    def read_faults(self) -> list[int]:
        """The addresses of the faults that wait to be read; empty if there is none."""
        try:
            messages = os.read(self.descriptor, _MESSAGE_BYTES * _MESSAGES_MAX)
        except BlockingIOError:
            return []
        return [
            struct.unpack_from("Q", messages, at + 16)[0]
            for at in range(0, len(messages), _MESSAGE_BYTES)
            if messages[at] == _EVENT_PAGEFAULT
        ]

    def close(self) -> None:
        """Give our copy of the descriptor back; what is registered stays so while QEMU has its own."""
        os.close(self.descriptor)


def _refused(request: str, error: OSError) -> UserfaultError:
    return UserfaultError(
        f"userfaultfd {request}", f"the kernel refused ({error.strerror})", "see that QEMU still runs and Linux is 6.7 or newer"
    )
