"""userfaultfd: the descriptor's requests, and the fault messages read from it.

Sources: linux/userfaultfd.h and Documentation/admin-guide/mm/userfaultfd.rst. The descriptor belongs to another process's address
space (QEMU's); all addresses are QEMU's. Write-protect faults are asynchronous: the kernel resolves and records them, they never
arrive here.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct

from architect.errors import HostError

_API, _REGISTER, _WAKE, _COPY, _WRITEPROTECT = 0xC018AA3F, 0xC020AA00, 0x8010AA02, 0xC028AA03, 0xC018AA06
_NEW_FROM_DEVICE = 0xAA00
_API_NUMBER = 0xAA
_WRITEPROTECT_MODE_WP = 1
_COPY_MODE_WP = 2
MODE_MISSING, MODE_WP = 1, 2
FEATURES = {"MISSING_SHMEM": 1 << 5, "WP_HUGETLBFS_SHMEM": 1 << 12, "WP_UNPOPULATED": 1 << 13, "WP_ASYNC": 1 << 15}
_ALL_FEATURES = sum(FEATURES.values())
_EVENT_PAGEFAULT = 0x12
_MESSAGE_BYTES = 32
_MESSAGES_MAX = 64
_COPY_RETRIES_MAX = 100
DEVICE = "/dev/userfaultfd"

_libc = ctypes.CDLL(None, use_errno=True)
_ioctl = _libc.ioctl
_ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]


class _Copy(ctypes.Structure):
    _fields_ = (
        ("dst", ctypes.c_uint64),
        ("src", ctypes.c_uint64),
        ("len", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("copy", ctypes.c_int64),
    )


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

    def install(self, address: int, source: int, length: int) -> int:
        """Make absent pages present with the bytes at our address `source`, write-protected, and wake who waits for them.

        Returns how many bytes were installed: less than `length` when a page that exists is met (it is left as it is).

        Raises:
            UserfaultError: the range is not registered, or the other process is gone.
        """
        done = 0
        for _ in range(_COPY_RETRIES_MAX):
            request = _Copy(address + done, source + done, length - done, _COPY_MODE_WP, 0)
            if _ioctl(self.descriptor, _COPY, ctypes.byref(request)) == 0:
                return length
            number = ctypes.get_errno()
            done += max(int(request.copy), 0)
            if number == errno.EEXIST or request.copy == -errno.EEXIST:
                return done
            if number != errno.EAGAIN:
                raise _refused("COPY", OSError(number, os.strerror(number)))
        raise _refused("COPY", OSError(errno.EAGAIN, "no progress"))

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
