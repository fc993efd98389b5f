"""The frequency of this host's time stamp counter. It is part of what a move checks: a guest that reads it by itself would live at
another speed elsewhere."""

from __future__ import annotations

import ctypes
import mmap
import time

_WINDOW_S = 0.02
_WINDOWS = 3
_TRIES = 16
_CLOCK = time.CLOCK_MONOTONIC_RAW
# rdtsc; shl rdx, 32; or rax, rdx; ret
_CODE = bytes([0x0F, 0x31, 0x48, 0xC1, 0xE2, 0x20, 0x48, 0x09, 0xD0, 0xC3])


def measure_tsc_khz() -> int:
    """The frequency in kHz, measured against CLOCK_MONOTONIC_RAW in about 60 ms; good to some 20 ppm."""
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page[: len(_CODE)] = _CODE
    anchor = ctypes.c_char.from_buffer(page)
    rdtsc = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(anchor))
    rates = sorted(_rate(rdtsc) for _ in range(_WINDOWS))
    return round(rates[_WINDOWS // 2] / 1000)


def _rate(rdtsc: ctypes._FuncPointer) -> float:
    began_ns, began = _reading(rdtsc)
    time.sleep(_WINDOW_S)
    ended_ns, ended = _reading(rdtsc)
    return (ended - began) * 1e9 / (ended_ns - began_ns)


def _reading(rdtsc: ctypes._FuncPointer) -> tuple[float, int]:
    """Both clocks at one moment: the tightest of several tries, so that being interrupted between them does not count."""
    tries = []
    for _ in range(_TRIES):
        before_ns, counter, after_ns = time.clock_gettime_ns(_CLOCK), int(rdtsc()), time.clock_gettime_ns(_CLOCK)
        tries.append((after_ns - before_ns, (before_ns + after_ns) / 2, counter))
    _, at_ns, counter = min(tries)
    return at_ns, counter
