"""Commands that people run in a VM (`architect exec`), while they run: output to the asker, input to the command."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from architect.agent.hosted_vm import HostedVm
from architect.drafter.guest_exec import GuestExec
from architect.drafter.guest_payloads import TerminalSize
from architect.errors import ConflictError, NotFoundError, OutcomeUnknownError
from architect.images import merge_environment
from architect.model.image import ProcessConfig
from architect.runtime.rpc import Call
from architect.wire.agent_messages import Done, ExecExit, ExecInput, ExecOutput, ExecStart


class ExecSessions:
    """The commands that run now, by session id."""

    def __init__(self) -> None:
        self._sessions: dict[str, GuestExec] = {}

    async def start(self, vm: HostedVm, message: ExecStart, call: Call) -> ExecExit:
        """Run the command to its end, its output as items. The asker's end closes the session, and with it the command.

        Raises:
            ConflictError: the VM does not run, or the session exists.
            OutcomeUnknownError: the VM left this host, or ended, before the command did.
        """
        if message.session in self._sessions:
            raise ConflictError(f"session {message.session}", "exists", "choose another id")
        guest = vm.live_guest()
        image = vm.spec.process
        environment = merge_environment(image.env, message.env)
        process = ProcessConfig(message.args, environment, image.cwd, image.uid, image.gid, image.groups, image.stop_signal)
        terminal = TerminalSize(message.rows, message.columns) if message.tty else None
        session = await guest.channel.exec_start(process, terminal)
        self._sessions[message.session] = session
        try:
            return await _while_here(vm, _pass_on(session, call))
        finally:
            del self._sessions[message.session]
            if not vm.ended.is_set() and vm.guest is guest:
                await asyncio.shield(guest.channel.exec_close(session))

    async def feed(self, message: ExecInput, body: bytes) -> Done:
        """Input, its end, or a new size of the terminal.

        Raises:
            NotFoundError: no such session runs here.
        """
        session = self._sessions.get(message.session)
        if session is None:
            raise NotFoundError(f"session {message.session}", "does not run here (any more)", "start it again")
        if message.rows and message.columns:
            await session.resize(TerminalSize(message.rows, message.columns))
        if body:
            await session.write(body)
        if message.end:
            session.end_input()
        return Done()


async def _pass_on(session: GuestExec, call: Call) -> ExecExit:
    await call.item(ExecOutput(1), b"")  # from here on input is taken; the asker waits for this word
    async for output in session.output():
        await call.item(ExecOutput(output.stream), output.data)
    return ExecExit(await session.wait())


async def _while_here(vm: HostedVm, work: Coroutine[Any, Any, ExecExit]) -> ExecExit:
    """Do the work; stop when the VM is not here any more, for its guest will not answer us then."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(vm.ended.wait())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        name = vm.record.request.name
        raise OutcomeUnknownError(f"command in vm {name}", "the vm has left its host, or ended", "see in the vm what became of it")
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.wait((working, leaving))
