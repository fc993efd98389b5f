"""Running a command in a VM: its output as it comes, its input as it is given, and its exit code.

The session's id is chosen here and known to the host, so that input finds its command.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import msgspec

from architect.control.fabric import Fabric
from architect.control.fleet import DisconnectedError
from architect.control.records import VmRecord
from architect.errors import ConflictError, LostError, NotFoundError, OutcomeUnknownError, UsageError
from architect.model.ids import HostName, VmId
from architect.model.vm_state import VmState
from architect.wire.agent_messages import ExecExit, ExecInput, ExecOutput, ExecStart

INPUT_TIMEOUT_S = 30.0
SESSIONS_MAX = 256
SIZE_MAX = 1000


class ExecWish(msgspec.Struct, frozen=True):
    """What `architect exec` asks for."""

    vm: str
    args: tuple[str, ...]
    env: tuple[str, ...] = ()
    tty: bool = False
    rows: int = 24
    columns: int = 80


class ExecStarted(msgspec.Struct, frozen=True):
    """The command was asked for; `session` takes input."""

    session: str


class ExecPart(msgspec.Struct, frozen=True):
    """Output of the command on stream 1 or 2."""

    stream: int
    data: bytes


class ExecResult(msgspec.Struct, frozen=True):
    """The command has ended."""

    exit_code: int


@dataclass(frozen=True)
class _Session:
    vm: VmId
    host: HostName


class ExecSessions:
    """The commands under way, by session."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._sessions: dict[str, _Session] = {}

    async def run(self, wish: ExecWish) -> AsyncGenerator[ExecStarted | ExecPart | ExecResult]:
        """Run a command; yields its session, its output, and at last its exit code. Leaving early ends the command.

        Raises:
            UsageError: the command is empty, or a size is out of bounds.
            NotFoundError: there is no such VM.
            ConflictError: the VM does not run.
            OutcomeUnknownError: the connection to the VM's host broke, or the VM moved, before the command ended.
        """
        record = self._runnable(wish)
        session = f"exec-{self._fabric.entropy.random_bytes(8).hex()}"
        self._sessions[session] = _Session(record.id, record.host)
        request = ExecStart(record.id, session, wish.args, wish.env, wish.tty, wish.rows, wish.columns)
        is_started = False
        try:
            async with contextlib.aclosing(self._fabric.fleet.stream(record.host, request)) as stream:
                async for message, body in stream:
                    if not is_started:  # before, the host does not know the session, and would refuse its input
                        is_started = True
                        yield ExecStarted(session)
                    match message:
                        case ExecOutput(number):
                            yield ExecPart(number, body)
                        case ExecExit(exit_code):
                            yield ExecResult(exit_code)
        except DisconnectedError as error:
            raise OutcomeUnknownError(
                f"command in vm {wish.vm}", f"lost sight of it ({error.cause})", "see in the vm what became of it"
            ) from error
        finally:
            del self._sessions[session]

    async def give_input(self, session: str, data: bytes, *, end: bool, rows: int = 0, columns: int = 0) -> None:
        """Give input to a command; `end` closes its input, `rows` and `columns` tell that its terminal has a new size.

        Raises:
            NotFoundError: the command has ended.
            ArchitectError: what the host reported.
        """
        known = self._sessions.get(session)
        if known is None:
            raise NotFoundError(f"session {session}", "has ended", "start the command again")
        request = ExecInput(known.vm, session, end, rows, columns)
        channel = self._fabric.fleet.channel(known.host)
        await channel.call_with_body(request, data, timeout_s=INPUT_TIMEOUT_S)

    def _runnable(self, wish: ExecWish) -> VmRecord:
        record = self._fabric.book.find_vm(wish.vm)
        if not wish.args:
            raise UsageError("exec", "no command given", "write it after --, for example `architect exec web -- ls`")
        if not (0 < wish.rows <= SIZE_MAX and 0 < wish.columns <= SIZE_MAX):
            raise UsageError("exec", f"a terminal of {wish.columns}x{wish.rows}", f"give sizes in 1..{SIZE_MAX}")
        if record.state is VmState.LOST:
            raise LostError(f"vm {wish.vm}", record.reason or "is lost", f"`architect rm {wish.vm}` forgets it")
        if record.state not in (VmState.RUNNING, VmState.PAUSED):
            raise ConflictError(f"vm {wish.vm}", f"is {record.state.value}", "run a command in a vm that runs")
        if len(self._sessions) >= SESSIONS_MAX:
            raise ConflictError("exec", f"over {SESSIONS_MAX} commands are under way", "wait for some to end")
        return record
