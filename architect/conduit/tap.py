"""Tap: the VM's network card as the host sees it, and the queue that holds frames while nobody reads them.

The agent makes the tap and passes its descriptor to QEMU, which has a duplicate: both share one queue. Frames that arrive while
QEMU does not read (a target that has not resumed) stay in the queue in order, up to TAP_QUEUE_FRAMES; more are dropped and counted.
A QEMU that waits for its state takes one frame all the same, and forgets it: `offer_blank` is for that one.
A tap lives as long as somebody holds a descriptor, so QEMU keeps it over a restart of the agent.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import select
import socket
import struct
from pathlib import Path

from architect.errors import ConflictError, HostError

TAP_QUEUE_FRAMES = 20000
DRAIN_POLL_S = 0.0005
TIMES_EMPTY = 2
FRAME_BYTES_MAX = 65536 + 64
# To nobody, of a type that IEEE 802 keeps for experiments: a VM that gets it drops it.
BLANK_FRAME = bytes.fromhex("020000000000 020000000000 88b5") + bytes(46)
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_SYS_PIDFD_OPEN, _SYS_PIDFD_GETFD = 434, 438
_libc = ctypes.CDLL(None, use_errno=True)


class Tap:
    """A tap's name and one descriptor of its queue, which it owns."""

    def __init__(self, name: str, descriptor: int) -> None:
        self.name = name
        self.fd = descriptor

    def is_empty(self) -> bool:
        """Whether the queue holds no frame."""
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        return not poll.poll(0)

    async def wait_drained(self, timeout_s: float) -> bool:
        """Wait until the VM has taken all frames; False if it has not by then. There is no event for "empty", so this polls.

        Empty counts if seen twice: a CPU that was about to put a frame in when the port's state changed is through by then.
        """
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        times_empty = 0
        while True:
            times_empty = times_empty + 1 if self.is_empty() else 0
            if times_empty == TIMES_EMPTY:
                return True
            if loop.time() >= deadline_s:
                return False
            await asyncio.sleep(DRAIN_POLL_S)

    def write_back(self, frames_max: int) -> int:
        """Take up to that many frames out of the queue and hand each to the kernel as if the VM had sent it; how many.

        The frame goes back byte for byte with its virtio header, so unfinished checksums and super-packets stay as they are.

        Raises:
            HostError: the tap is gone.
        """
        for done in range(frames_max):
            try:
                frame = os.read(self.fd, FRAME_BYTES_MAX)
                os.write(self.fd, frame)
            except BlockingIOError:
                return done
            except OSError as error:
                raise HostError(
                    f"tap {self.name}", str(error), "the frames that it held are lost; peers send them again"
                ) from error
        return frames_max

    def offer_blank(self) -> None:
        """Put a frame without meaning into the queue, for a QEMU that has been started to receive a VM and does not run it yet.

        It reads one frame, finds that it cannot deliver it, reads no more until it runs, and loses that one when it loads its
        device state (QEMU 7.2, measured: the first frame of each move was lost). Frames behind the blank one stay in the queue.

        Raises:
            HostError: the tap is gone.
        """
        try:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
                sender.bind((self.name, 0))
                sender.send(BLANK_FRAME)
        except OSError as error:
            raise HostError(f"tap {self.name}", str(error), "see whether the VM's QEMU still runs") from error

    def close(self) -> None:
        """Close the descriptor. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def open_tap(name: str) -> Tap:
    """Make the tap and open its only queue, non-blocking, with virtio headers. It is down and unconfigured.

    Raises:
        ConflictError: it exists and somebody has its queue.
        HostError: no /dev/net/tun, or no permission.
    """
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise HostError("/dev/net/tun", str(error.strerror), "run as root; load the module tun") from error
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR))
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError | FileExistsError) or error.errno == 16:
            raise ConflictError(f"tap {name}", "somebody has it open", "adopt it, or remove the VM first") from error
        raise HostError(f"tap {name}", str(error.strerror), "run as root, or with CAP_NET_ADMIN") from error
    return Tap(name, descriptor)


def take_tap(name: str, process: int) -> Tap:
    """The tap whose descriptor another process (QEMU) has, by a duplicate of it: after a restart of the agent.

    Raises:
        HostError: the process has no such tap, or we may not look into it (CAP_SYS_PTRACE).
    """
    number = _find_descriptor(name, process)
    pidfd = _libc.syscall(_SYS_PIDFD_OPEN, process, 0)
    descriptor = _libc.syscall(_SYS_PIDFD_GETFD, pidfd, number, 0) if pidfd >= 0 else -1
    cause = os.strerror(ctypes.get_errno())
    if pidfd >= 0:
        os.close(pidfd)
    if descriptor < 0:
        raise HostError(f"tap {name}", f"cannot be taken from process {process} ({cause})", "run as root, or with CAP_SYS_PTRACE")
    return Tap(name, descriptor)


def _find_descriptor(name: str, process: int) -> int:
    try:
        for path in Path(f"/proc/{process}/fdinfo").iterdir():
            if f"iff:\t{name}\n" in path.read_text():
                return int(path.name)
    except OSError as error:
        raise HostError(f"tap {name}", f"process {process}: {error.strerror}", "see whether the VM still runs") from error
    raise HostError(f"tap {name}", f"process {process} does not have it", "see whether the VM still runs")
