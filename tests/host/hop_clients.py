"""Clients outside of a VM with databases: each writes, remembers what was acknowledged, and can ask for all of it in the end.

One connection each for the whole time: that it lives is part of the test. A silence is the time between two answers.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
import time
from abc import ABC, abstractmethod

from tests.host.fabric_rig import FabricRig

REDIS_PORT = 6379
SQLITE_PORT = 7000
ANSWER_TIMEOUT_S = 60.0


def value_of(number: int) -> str:
    """What is written under a number."""
    return hashlib.sha256(str(number).encode()).hexdigest()[:32]


class Client(ABC):
    """A thread that asks again and again, `interval_s` after each answer."""

    def __init__(self, rig: FabricRig, port: int, interval_s: float) -> None:
        self._socket = rig.connect(port)
        self._socket.settimeout(ANSWER_TIMEOUT_S)
        self._lines = self._socket.makefile("rb")
        self._interval_s = interval_s
        self._ended = threading.Event()
        self._errors: list[Exception] = []
        self._silence_s = 0.0
        self.acknowledged = 0
        self._thread = threading.Thread(target=self._run, name=type(self).__name__)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def longest_silence_ms(self) -> float:
        """The longest time between two answers since the last call."""
        longest_s, self._silence_s = self._silence_s, 0.0
        return longest_s * 1000

    def finish(self) -> None:
        """Stop asking. Raises: what went wrong on the way."""
        self._ended.set()
        self._thread.join(ANSWER_TIMEOUT_S)
        if self._errors:
            raise self._errors[0]

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._ended.set()
        self._thread.join(ANSWER_TIMEOUT_S)
        self._lines.close()
        self._socket.close()

    def say(self, *lines: str) -> None:
        self._socket.sendall("".join(f"{line}\n" for line in lines).encode())

    def hear(self) -> str:
        """The next line. Raises: ConnectionError: the connection is over."""
        line = self._lines.readline()
        if not line.endswith(b"\n"):
            raise ConnectionError(f"the connection ended after {self.acknowledged} answers")
        return line.decode().strip()

    @abstractmethod
    def ask(self, number: int) -> None:
        """Ask number `number`, and wait for the answer."""

    def _run(self) -> None:
        answered_s = time.monotonic()
        try:
            while not self._ended.wait(self._interval_s):
                self.ask(self.acknowledged + 1)
                self.acknowledged += 1
                answered_s, before_s = time.monotonic(), answered_s
                self._silence_s = max(self._silence_s, answered_s - before_s)
        except (OSError, ValueError, AssertionError) as error:
            self._errors.append(error)


class RedisPing(Client):
    """Writes nothing: measures silences, every two milliseconds."""

    def __init__(self, rig: FabricRig) -> None:
        super().__init__(rig, REDIS_PORT, 0.002)

    def ask(self, number: int) -> None:
        self.say("PING")
        assert self.hear() == "+PONG"


class RedisWriter(Client):
    """Sets keys, each once."""

    def __init__(self, rig: FabricRig) -> None:
        super().__init__(rig, REDIS_PORT, 0.02)

    def ask(self, number: int) -> None:
        self.say(f"SET k{number} {value_of(number)}")
        assert self.hear() == "+OK"

    def lost(self) -> list[int]:
        """The acknowledged keys that are not there as they were written. After `finish`."""
        lost = []
        for number in range(1, self.acknowledged + 1):
            self.say(f"GET k{number}")
            if self.hear() == "$-1" or self.hear() != value_of(number):
                lost.append(number)
        return lost


class SqliteWriter(Client):
    """Inserts rows, each in a transaction of its own."""

    def __init__(self, rig: FabricRig) -> None:
        super().__init__(rig, SQLITE_PORT, 0.05)
        self.say("CREATE TABLE rows (number INTEGER PRIMARY KEY, value TEXT);")
        self._answers("SELECT 'is ready';", "is ready")

    def ask(self, number: int) -> None:
        self.say(f"INSERT INTO rows VALUES ({number}, '{value_of(number)}');")
        self._answers(f"SELECT 'inserted ' || count(*) FROM rows WHERE number = {number};", "inserted 1")

    def lost(self) -> list[int]:
        """The acknowledged rows that are not there as they were written. After `finish`."""
        self.say("SELECT 'row ' || number || ' ' || value FROM rows ORDER BY number;")
        lines = self._answers("SELECT 'no more';", "no more")
        found = dict(line.split()[1:] for line in lines if line.startswith("row "))
        return [number for number in range(1, self.acknowledged + 1) if found.get(str(number)) != value_of(number)]

    def integrity(self) -> str:
        """What sqlite finds wrong in its file: `ok` if nothing. After `finish`."""
        self.say("PRAGMA integrity_check;")
        lines = self._answers("SELECT 'checked';", "checked")
        return next(line for line in reversed(lines) if not line.startswith(("PRAGMA", "SELECT")))

    def _answers(self, statement: str, last: str) -> list[str]:
        """Say a statement; all lines up to its answer `last`, without it."""
        self.say(statement)
        lines = []
        while (line := self.hear()) != last:
            assert "rror" not in line, line
            lines.append(line)
        return lines
