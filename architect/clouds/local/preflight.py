"""Can this machine carry a local fabric? Each capability is tried, not looked up; what is missing is named."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import platform
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

from architect.errors import HostError
from architect.runtime.namespaces import run_in_thread

_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TAP_NO_PI = 0x0002 | 0x1000
_USERFAULTFD_IOC_NEW = 0xAA00
_UFFDIO_API = 0xC018AA3F
_UFFD_API = 0xAA
_UFFD_FEATURES = (1 << 13) | (1 << 15)  # WP_UNPOPULATED, WP_ASYNC: linux/userfaultfd.h
_PAGEMAP_SCAN = 0xC0606610
_BPF_CALLS = {"x86_64": 321, "aarch64": 280}
_BPF_MAP_TYPE_ARRAY = 2
_QEMU = "qemu-system-x86_64"
_KERNEL_MIN = (6, 7)
_libc = ctypes.CDLL(None, use_errno=True)


def check_machine() -> None:
    """Return if a fabric can run here.

    Raises:
        HostError: the first thing that is missing, and how to get it.
    """
    check_root()
    check_kernel()
    check_namespaces()
    check_tun()
    check_userfaultfd()
    check_pagemap_scan()
    check_bpf()
    check_qemu()


def check_root() -> None:
    """Raises: HostError: we are not root."""
    if os.geteuid() != 0:
        raise HostError("this user", f"is not root (uid {os.geteuid()})", "run it with sudo: it makes network namespaces and taps")


def check_kernel() -> None:
    """Raises: HostError: the kernel is older than 6.7."""
    release = platform.release()
    numbers = tuple(int("0" + "".join(filter(str.isdigit, part))) for part in release.split("-")[0].split(".")[:2])
    if numbers < _KERNEL_MIN:
        raise HostError(f"kernel {release}", "is older than 6.7", "boot a newer one (Debian 12: linux-image-amd64 from backports)")


def check_namespaces() -> None:
    """Raises: HostError: no network namespace can be made."""

    def attempt() -> None:
        _call(_libc.unshare(_CLONE_NEWNET))

    _try("network namespaces", "use a kernel with CONFIG_NET_NS, outside of a restricted container", lambda: run_in_thread(attempt))


def check_tun() -> None:
    """Raises: HostError: no tap can be made."""

    def attempt() -> None:
        _call(_libc.unshare(_CLONE_NEWNET))
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", b"preflight", _IFF_TAP_NO_PI))
        finally:
            os.close(descriptor)

    _try("/dev/net/tun", "load the module (modprobe tun) or pass the device in", lambda: run_in_thread(attempt))


def check_userfaultfd() -> None:
    """Raises: HostError: no userfaultfd with asynchronous write-protection."""

    def attempt() -> None:
        device = os.open("/dev/userfaultfd", os.O_RDWR | os.O_CLOEXEC)
        try:
            descriptor = fcntl.ioctl(device, _USERFAULTFD_IOC_NEW, os.O_CLOEXEC)
        finally:
            os.close(device)
        try:
            fcntl.ioctl(descriptor, _UFFDIO_API, bytearray(struct.pack("QQQ", _UFFD_API, _UFFD_FEATURES, 0)))
        finally:
            os.close(descriptor)

    _try("userfaultfd (/dev/userfaultfd, WP_ASYNC)", "use Linux 6.7 or newer with CONFIG_USERFAULTFD", attempt)


def check_pagemap_scan() -> None:
    """Raises: HostError: the kernel does not know PAGEMAP_SCAN."""

    def attempt() -> None:
        size = os.sysconf("SC_PAGE_SIZE")
        with mmap.mmap(-1, size) as page:
            start = ctypes.addressof(ctypes.c_char.from_buffer(page))
            regions = ctypes.create_string_buffer(24)
            argument = struct.pack("12Q", 96, 0, start, start + size, 0, ctypes.addressof(regions), 1, 0, 0, 0, 0, 1 << 1)
            with Path("/proc/self/pagemap").open("rb") as pagemap:
                fcntl.ioctl(pagemap.fileno(), _PAGEMAP_SCAN, bytearray(argument))

    _try("PAGEMAP_SCAN", "use Linux 6.7 or newer", attempt)


def check_bpf() -> None:
    """Raises: HostError: no BPF map can be made."""

    def attempt() -> None:
        number = _BPF_CALLS.get(platform.machine())
        if number is None:
            raise OSError(0, f"system call not known on {platform.machine()}")
        attributes = ctypes.create_string_buffer(struct.pack("5I", _BPF_MAP_TYPE_ARRAY, 4, 4, 1, 0), 128)
        descriptor = _libc.syscall(number, 0, attributes, ctypes.sizeof(attributes))
        _call(min(descriptor, 0))
        os.close(descriptor)

    _try("bpf(2)", "run as root on a kernel with CONFIG_BPF_SYSCALL, outside of a restricted container", attempt)


def check_qemu() -> None:
    """Raises: HostError: QEMU is not installed."""
    if shutil.which(_QEMU) is None:
        raise HostError(_QEMU, "is not installed", "install it (Debian: apt install qemu-system-x86)")


def _try(thing: str, next_step: str, attempt: Callable[[], None]) -> None:
    try:
        attempt()
    except OSError as error:
        raise HostError(thing, f"does not work here ({error.strerror or error})", next_step) from error


def _call(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
