"""Many flows probed at once: `python -m bench.flow_probes ADDRESS FIRST_PORT COUNT` sends to each port every `INTERVAL_S`.

As `gap_probe`, but for many VMs, and so at a lower rate: 20 guests under TCG could not answer a thousand datagrams a second each.
A gap is known to `INTERVAL_S`. Orders on stdin: `reset`, `report` (a line of JSON: one window for each port); its end ends it.
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

INTERVAL_S = 0.02
_NUMBER = struct.Struct("<Q")
_SO_TIMESTAMPNS = 35
_STAMP = struct.Struct("@qq")


def main(address: str, first_port: int, count: int) -> None:
    """Probe until stdin ends."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(2))
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(_connected(address, first_port + index)) for index in range(count)]
        windows = {probe: GapWindow() for probe in sockets}
        next_s = time.time()
        while True:
            now_s = time.time()
            if now_s >= next_s:
                for probe, window in windows.items():
                    with contextlib.suppress(OSError):  # nobody listens yet: it counts as not answered
                        probe.send(_NUMBER.pack(window.sent(now_s)))
                next_s = max(next_s + INTERVAL_S, now_s)
            ready, _, _ = select.select([*sockets, sys.stdin], [], [], max(0.0, next_s - time.time()))
            for answered in ready:
                if isinstance(answered, socket.socket):
                    _receive(answered, windows[answered])
            if sys.stdin in ready and not _obey(list(windows.values())):
                return


def _connected(address: str, port: int) -> socket.socket:
    probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    probe.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    probe.setblocking(False)
    probe.connect((address, port))
    return probe


def _receive(probe: socket.socket, window: GapWindow) -> None:
    with contextlib.suppress(OSError):
        while True:
            data, ancillary, _, _ = probe.recvmsg(2048, 64)
            stamps = [_STAMP.unpack(value[: _STAMP.size]) for _, kind, value in ancillary if kind == _SO_TIMESTAMPNS]
            arrived_s = stamps[0][0] + stamps[0][1] * 1e-9 if stamps else time.time()
            if len(data) >= _NUMBER.size:
                window.received(int.from_bytes(data[: _NUMBER.size], "little"), arrived_s)


def _obey(windows: list[GapWindow]) -> bool:
    """Carry out the orders; whether there may be more."""
    orders = os.read(sys.stdin.fileno(), 256).decode().split()
    for order in orders:
        if order == "reset":
            for window in windows:
                window.reset()
        elif order == "report":
            now_s = time.time()
            sys.stdout.buffer.write(msgspec.json.encode([window.report(now_s) for window in windows]) + b"\n")
            sys.stdout.buffer.flush()
    return bool(orders)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
