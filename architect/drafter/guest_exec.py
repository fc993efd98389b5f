"""An exec session: a process beside the workload, with input, output and exit code, that outlives the connection to its guest.

Output records are numbered and acknowledged when the reader has taken them; input is a stream of bytes with positions. So after a
reconnection, or from another host after a move, both go on without loss or repetition.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator

import msgspec

from architect.drafter.guest_link import GuestLink, GuestRefusedError
from architect.drafter.guest_payloads import ATTACH, EXIT, INPUT_ACK, RESIZE, SIGNAL, TerminalSize, unpack
from architect.drafter.guest_protocol import (
    EXEC_INPUT_BYTES_MAX,
    FLAG_END_OF_INPUT,
    POSITION_OF_GUEST,
    RECORD_BYTES_MAX,
    FrameType,
    GuestFrame,
    GuestProtocolError,
)
from architect.errors import ArchitectError, NotFoundError

REQUEST_TIMEOUT_S = 10.0
OUTPUT_RECORDS_MAX = 64 * 1024  # The guest stops at 256 KiB unacknowledged; a record has at least one byte and a header.


class ExecOutput(msgspec.Struct, frozen=True):
    """A piece of output; `stream` is 1 or 2 (a terminal has only 1), `seq` its position."""

    stream: int
    seq: int
    data: bytes


class GuestExec:
    """One session; made by `GuestChannel.exec_start` and `exec_attach`. One reader, one writer."""

    def __init__(self, link: GuestLink, exec_id: int, output_position: int | None) -> None:
        self._link = link
        self.id = exec_id
        self._output: deque[ExecOutput] = deque()
        self._received = output_position  # None: the first record tells.
        self._consumed = output_position or 0
        self._input = bytearray()  # From `_input_start` on, what the guest has not acknowledged as received.
        self._input_start = self._input_sent = self._input_taken = 0
        self._input_ended = self._end_sent = False
        self._attached = self._has_started = False
        self._exit_code: int | None = None
        self._failure: ArchitectError | None = None
        self._changed = asyncio.Event()

    @property
    def output_position(self) -> int:
        """The last output record that the reader has taken; what `exec_attach` on another host continues behind."""
        return self._consumed

    @property
    def is_live(self) -> bool:
        """Whether the process was started and its end is not known here."""
        return self._has_started and self._exit_code is None

    @property
    def unsent_input(self) -> bytes:
        """Input that was written here and that the guest has not acknowledged."""
        return bytes(self._input)

    async def output(self) -> AsyncIterator[ExecOutput]:
        """The output, to the end of the process. A record counts as taken when the next one is asked for.

        Raises:
            NotFoundError: the guest does not know the session any more.
        """
        while True:
            while self._output:
                record = self._output.popleft()
                yield record
                self._consumed = record.seq
                self._link.send(GuestFrame(FrameType.EXEC_OUTPUT_ACK, stream=self.id, seq=record.seq))
            if self._exit_code is not None:
                return
            await self._wait_change()

    async def wait(self) -> int:
        """The exit code, once the process has ended and all its output is here; 128 + signal where one ended it.

        Needs a reader of `output` where there is more than 256 KiB of it.
        """
        while self._exit_code is None:
            await self._wait_change()
        return self._exit_code

    async def write(self, data: bytes) -> None:
        """Give the process input; waits while it has more than it takes."""
        assert not self._input_ended, "input after its end"
        self._input += data
        self._pump()
        while len(self._input) > EXEC_INPUT_BYTES_MAX and self._exit_code is None:
            await self._wait_change()
        await self._link.drain()

    def end_input(self) -> None:
        """No more input will come: closes the pipe, or is Ctrl-D at a terminal. Idempotent."""
        self._input_ended = True
        self._pump()

    async def resize(self, size: TerminalSize) -> None:
        """Tell the terminal its new size."""
        payload = RESIZE.pack(size.rows, size.columns)
        await self._link.request(FrameType.EXEC_RESIZE, payload, REQUEST_TIMEOUT_S, self.id)

    async def signal(self, number: int) -> None:
        """Signal the process and its group."""
        await self._link.request(FrameType.SIGNAL, SIGNAL.pack(number), REQUEST_TIMEOUT_S, self.id)

    async def close(self) -> None:
        """End the session: kills the process if it still runs, and the guest forgets it. Idempotent."""
        try:
            await self._link.request(FrameType.EXEC_CLOSE, b"", REQUEST_TIMEOUT_S, self.id)
        except GuestRefusedError as error:
            if error.status != _ESRCH:
                raise

    async def attach(self) -> None:
        """Have the guest send this session's output, from behind the last record received."""
        position = POSITION_OF_GUEST if self._received is None else self._received
        await self._link.request(FrameType.EXEC_ATTACH, ATTACH.pack(position), REQUEST_TIMEOUT_S, self.id)

    def started(self) -> None:
        """The guest has just started the process: nothing to catch up with."""
        self._attached = self._has_started = True
        self._pump()

    def attached(self) -> None:
        """The guest knows this session; its first INPUT_ACK says where input goes on."""
        self._has_started = True

    def detached(self) -> None:
        """The connection was lost."""
        self._attached = False

    def fail(self, error: ArchitectError) -> None:
        """Every wait on this session raises `error` from now on."""
        self._failure = error
        self._changed.set()

    def take(self, frame: GuestFrame) -> None:
        """A frame of this session came.

        Raises:
            GuestProtocolError: it is not what must come next.
        """
        match frame.type:
            case FrameType.EXEC_OUTPUT:
                self._take_output(frame)
            case FrameType.EXEC_INPUT_ACK:
                self._take_input_ack(frame)
            case FrameType.EXEC_EXIT:
                (self._exit_code,) = unpack(EXIT, frame, self._link.guest)
            case _:
                raise GuestProtocolError(self._link.guest, f"sent {frame.type.name} to an exec session", "check its initramfs")
        self._changed.set()

    def _take_output(self, frame: GuestFrame) -> None:
        if self._received is None:
            self._received = frame.seq - 1
        if frame.seq <= self._received:
            return
        if frame.seq != self._received + 1 or len(self._output) >= OUTPUT_RECORDS_MAX:
            raise GuestProtocolError(
                self._link.guest, f"skipped output {self._received + 1} of an exec session", "start a new session"
            )
        self._received = frame.seq
        self._output.append(ExecOutput(frame.flags, frame.seq, frame.payload))

    def _take_input_ack(self, frame: GuestFrame) -> None:
        (received,) = unpack(INPUT_ACK, frame, self._link.guest)
        if not self._attached:
            # First word of this session: it goes on from what the guest holds. One that we attached to knows no earlier input.
            if not self._input:
                self._input_start = received
            elif received < self._input_start:
                self.fail(gone_error(self._link.guest, self.id))  # The guest went back in time, before input that is gone here.
                return
            self._input_sent = received
            self._end_sent = False
            self._attached = True
        if received > self._input_start + len(self._input):
            raise GuestProtocolError(self._link.guest, "acknowledged input that was not sent", "start a new session")
        del self._input[: received - self._input_start]
        self._input_start = received
        self._input_sent = max(self._input_sent, received)
        self._input_taken = frame.seq
        self._pump()

    def _pump(self) -> None:
        """Send what the guest has room for."""
        while self._attached and not self._end_sent:
            start = self._input_sent - self._input_start
            room = EXEC_INPUT_BYTES_MAX - (self._input_sent - self._input_taken)
            piece = bytes(self._input[start : start + min(room, RECORD_BYTES_MAX)])
            is_last = self._input_ended and start + len(piece) == len(self._input)
            if not piece and not is_last:
                return
            flags = FLAG_END_OF_INPUT if is_last else 0
            self._link.send(GuestFrame(FrameType.EXEC_INPUT, piece, self.id, self._input_sent, flags))
            self._input_sent += len(piece)
            self._end_sent = is_last

    async def _wait_change(self) -> None:
        if self._failure is not None:
            raise self._failure
        self._changed.clear()
        await self._changed.wait()


def new_exec_id() -> int:
    """A random id, so that two agents of one VM do not meet."""
    return int.from_bytes(os.urandom(4), "little") or 1


def gone_error(guest: str, exec_id: int) -> NotFoundError:
    """What is raised for a session that the guest does not know."""
    return NotFoundError(f"{guest}: exec session {exec_id}", "the guest does not know it", "start a new one")


_ESRCH = 3
