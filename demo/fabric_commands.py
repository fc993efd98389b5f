"""The demo's hold on the fabric: the `architect` command line, as a user has it, with `--json`."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from architect.errors import ArchitectError, UnavailableError, remote_error
from demo.interruption import to_its_end

ARCHITECT = str(Path(sys.executable).parent / "architect")
COMMAND_S = 180.0


class Fabric:
    """Runs commands against one fabric."""

    def __init__(self, state_dir: Path, program: str = ARCHITECT) -> None:
        self._state_dir = state_dir
        self._program = program

    async def command(self, *words: str, timeout_s: float = COMMAND_S) -> Any:
        """What a command prints with `--json`.

        Raises:
            ArchitectError: it failed; carries its last line.
        """
        out = await self._output(*words, timeout_s=timeout_s)
        return json.loads(out)

    async def _output(self, *words: str, timeout_s: float) -> bytes:
        # In a session of its own: a Ctrl-C is the demo's, which says itself what becomes of the command.
        process = await asyncio.create_subprocess_exec(
            self._program, "--state-dir", str(self._state_dir), *words,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        thing = "architect " + " ".join(words)
        try:
            async with asyncio.timeout(timeout_s):
                out, err = await process.communicate()
        except TimeoutError as error:
            raise UnavailableError(thing, f"no answer in {timeout_s:g} s", "see the fabric's logs") from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            lines = err.decode(errors="replace").strip().splitlines() or ["no words"]
            raise remote_error("error", thing, lines[-1], "see the fabric's logs")
        return out

    async def up(self, hosts: int) -> Any:
        """`architect up`."""
        return await self.command("up", "--hosts", str(hosts), "--json", timeout_s=600)

    async def down(self) -> None:
        """`architect down`, to its end: who is cancelled meanwhile is so after it.

        Raises:
            ArchitectError: something is left; the next step is the command that removes it.
        """
        by_hand = f"architect --state-dir {self._state_dir} down"
        try:
            await to_its_end(self._output("down", "--json", timeout_s=COMMAND_S))
        except ArchitectError as error:
            left = f"is not taken apart ({error.cause})"
            raise remote_error(error.code, f"fabric in {self._state_dir}", left, f"`{by_hand}` removes it") from error

    async def run(self, image: str, *words: str) -> Any:
        """`architect run`."""
        return await self.command("run", *words, "--json", image)

    async def inspect(self, vm: str) -> Any:
        """`architect inspect`."""
        return await self.command("inspect", vm, "--json")

    async def hosts(self) -> Any:
        """`architect host ls`."""
        return await self.command("host", "ls", "--json")

    async def events(self) -> list[Any]:
        """`architect events`."""
        out = await self._output("events", "--json", timeout_s=COMMAND_S)
        return [json.loads(line) for line in out.splitlines()]

    async def migrations(self) -> list[Any]:
        """All moves with their phases, from the REST interface: the command line shows a move only to who asked for it."""
        reader, writer = await asyncio.open_unix_connection(str(self._state_dir / "control.sock"))
        try:
            writer.write(b"GET /v1/migrations HTTP/1.0\r\nHost: control\r\nConnection: close\r\n\r\n")
            answer = await reader.read()
        finally:
            writer.close()
        moves: list[Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
        return moves
