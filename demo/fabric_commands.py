"""The demo's hold on the fabric: the `architect` command line, as a user has it, with `--json`."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from architect.errors import remote_error

ARCHITECT = str(Path(sys.executable).parent / "architect")


class Fabric:
    """Runs commands against one fabric."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir

    async def command(self, *words: str, timeout_s: float = 180.0) -> Any:
        """What a command prints with `--json`; its words on stderr pass through.

        Raises:
            ArchitectError: it failed; carries its last line.
        """
        process = await asyncio.create_subprocess_exec(
            ARCHITECT, "--state-dir", str(self._state_dir), *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        try:
            async with asyncio.timeout(timeout_s):
                out, err = await process.communicate()
        except BaseException:
            process.kill()
            raise
        if process.returncode:
            lines = err.decode(errors="replace").strip().splitlines() or ["no words"]
            raise remote_error("error", "architect " + " ".join(words), lines[-1], "see the fabric's logs")
        return json.loads(out)

    async def up(self, hosts: int) -> Any:
        """`architect up`."""
        return await self.command("up", "--hosts", str(hosts), "--json", timeout_s=600)

    async def down(self) -> None:
        """`architect down`."""
        await self.command("down", "--json")

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
        process = await asyncio.create_subprocess_exec(
            ARCHITECT, "--state-dir", str(self._state_dir), "events", "--json", stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
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
