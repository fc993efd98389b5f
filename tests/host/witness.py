"""The outside of a witness (`native/verify/witness.c`): acknowledged writes and datagrams, for a VM's whole life.

Each number that the guest acknowledges is chained; a lost, doubled or reverted write shows in the next answer, and `check` compares
what the guest's disk holds. Datagrams come back with a counter of the guest's: one that repeats is a guest that was set back.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator

from tests.host.fabric_rig import FabricRig

INTERVAL_S = 0.05
ANSWER_S = 150.0  # more than a guest may stand in any cell of the matrix
_MASK = (1 << 64) - 1
_QUESTION = struct.Struct("<Q")
_ANSWER = struct.Struct("<QQ")


class WitnessError(AssertionError):
    """The guest has lost, doubled or changed something, or its flow has broken."""


def mix(value: int) -> int:
    """A step of splitmix64, as in `pattern.c`."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


class Witness:
    """One VM's flows, in two threads, until `close`."""

    def __init__(self, rig: FabricRig, port: int) -> None:
        self._stream = rig.connect(port)
        self._stream.settimeout(ANSWER_S)
        self._lines = self._stream.makefile("r", encoding="ascii")
        self._datagrams = rig.machine.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._datagrams.connect((rig.edge, port))
        self._datagrams.settimeout(INTERVAL_S)
        self._asking = threading.Lock()
        self._closed = threading.Event()
        self._last_s = time.monotonic()
        self._gap_s = 0.0
        self.error = ""
        self.count = self.chain = 0
        self.datagrams_sent = self.datagrams_back = 0
        self._counters: set[int] = set()
        self._threads = [threading.Thread(target=self._write), threading.Thread(target=self._send)]
        for thread in self._threads:
            thread.start()

    def _write(self) -> None:
        with self._noting():
            while not self._closed.wait(INTERVAL_S):
                with self._asking:
                    self._append()

    def _append(self) -> None:
        number = self.count
        found = self._ask(str(number))
        self.chain = mix(self.chain ^ number)
        if found != f"{number} {self.chain:016x}":
            raise WitnessError(f"write {number} was answered {found!r}, expected chain {self.chain:016x}")
        self.count += 1
        now_s = time.monotonic()
        self._gap_s, self._last_s = max(self._gap_s, now_s - self._last_s), now_s

    def _ask(self, line: str) -> str:
        self._stream.sendall(f"{line}\n".encode())
        answer = self._lines.readline()
        if not answer:
            raise WitnessError(f"the guest's connection has ended after {self.count} writes")
        return answer.strip()

    def _send(self) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(OSError):  # refused while nobody listens
                self._datagrams.send(_QUESTION.pack(self.datagrams_sent))
                self.datagrams_sent += 1
                end_s = time.monotonic() + INTERVAL_S
                while (left_s := end_s - time.monotonic()) > 0:
                    self._datagrams.settimeout(left_s)
                    self._note(*_ANSWER.unpack(self._datagrams.recv(100)))

    def _note(self, _number: int, counter: int) -> None:
        if counter in self._counters:
            self.error = self.error or f"the guest's counter says {counter} twice: it was set back"
        self._counters.add(counter)
        self.datagrams_back += 1

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, WitnessError) as error:
            if not self._closed.is_set():
                self.error = self.error or f"{type(error).__name__}: {error}"

    def begin(self) -> None:
        """Measure the longest silence anew."""
        self._gap_s, self._last_s = 0.0, time.monotonic()

    @property
    def gap_s(self) -> float:
        """The longest time between two acknowledged writes since `begin`."""
        return max(self._gap_s, 0.0)

    def tell(self, line: str) -> str:
        """Another request, in between."""
        with self._asking:
            return self._ask(line)

    def progress(self) -> tuple[int, int]:
        """Acknowledged writes and datagrams that came back so far."""
        return self.count, self.datagrams_back

    def check(self) -> None:
        """The guest's disk holds exactly what was acknowledged.

        Raises:
            WitnessError: it does not, or a flow has broken before.
        """
        if self.error:
            raise WitnessError(self.error)
        with self._asking:
            found = self._ask("check")
            expected = f"disk {self.count} {self.chain:016x}"
        if found != expected:
            raise WitnessError(f"the guest's disk holds {found!r}, acknowledged was {expected!r}")

    def close(self) -> None:
        """End the flows."""
        self._closed.set()
        with contextlib.suppress(OSError):
            self._stream.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._stream.close()
        self._datagrams.close()
