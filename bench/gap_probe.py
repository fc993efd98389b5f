"""The client outside: `python -m bench.gap_probe ADDRESS PORT` sends a datagram every millisecond and measures silences.

A process of its own at real-time priority, so that neither the benchmark's work nor the VM takes its turns; arrivals are stamped by
the kernel. Orders come as lines on stdin: `loud` and `quiet` start and stop the sending (it begins quiet), `reset` begins a
window, `report` prints it as a line of JSON, the end of stdin ends it.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import sys
import time

import msgspec

from bench.gap_window import GapWindow

INTERVAL_S = 0.001
BEHIND_S_MAX = 0.005
QUIET_S = 0.1
_NUMBER = struct.Struct("<Q")
_STAMP = struct.Struct("@qq")
_SO_TIMESTAMPNS = 35
_PADDING = bytes(56)


def main(address: str, port: int) -> None:
    """Probe until stdin ends."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(2))
    window = GapWindow()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        probe.setblocking(False)
        probe.connect((address, port))
        next_s, is_quiet = time.time(), True
        while True:
            now_s = time.time()
            if is_quiet:
                window.pause()
                next_s = now_s + QUIET_S
            elif now_s >= next_s:
                with contextlib.suppress(OSError):  # nobody listens yet, or no way there: it counts as not answered
                    probe.send(_NUMBER.pack(window.sent(now_s)) + _PADDING)
                next_s = max(next_s + INTERVAL_S, now_s - BEHIND_S_MAX)
            ready, _, _ = select.select([probe, sys.stdin], [], [], max(0.0, next_s - time.time()))
            if probe in ready:
                _receive(probe, window)
            if sys.stdin in ready:
                orders = os.read(sys.stdin.fileno(), 256).decode().split()
                if not orders:
                    return
                for order in orders:
                    is_quiet = order == "quiet" or (is_quiet and order != "loud")
                    _obey(order, window)
                next_s = time.time()


def _receive(probe: socket.socket, window: GapWindow) -> None:
    with contextlib.suppress(OSError):
        while True:
            data, ancillary, _, _ = probe.recvmsg(2048, 64)
            stamps = [_STAMP.unpack(value[: _STAMP.size]) for _, kind, value in ancillary if kind == _SO_TIMESTAMPNS]
            arrived_s = stamps[0][0] + stamps[0][1] * 1e-9 if stamps else time.time()
            if len(data) >= _NUMBER.size:
                window.received(int.from_bytes(data[: _NUMBER.size], "little"), arrived_s)


def _obey(order: str, window: GapWindow) -> None:
    if order == "loud":
        window.pause()
    elif order == "reset":
        window.reset()
    elif order == "report":
        sys.stdout.buffer.write(msgspec.json.encode(window.report(time.time())) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(sys.argv[1], int(sys.argv[2]))
