"""Our side of the comparison: a fabric of two hosts, used by its command line, and the VM that goes back and forth between them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

from architect.errors import HandoverError, NotFoundError, PeerError
from bench.guest_contact import GUEST_PORT, GuestContact
from bench.guest_image import guest_words
from bench.results import Cell, Engine, EngineSetup, Limits, Move, Span
from demo.fabric_commands import ARCHITECT, Fabric

VM = "bench"
HOSTS = ("aws-1", "gcp-1")
RESUME_PHASE = "target-resume"


class BenchFabric:
    """A fabric for the length of `running_fabric`; runs one VM at a time."""

    def __init__(self, state_dir: Path, edge_address: str) -> None:
        self._state_dir = state_dir
        self._edge_address = edge_address

    @contextlib.asynccontextmanager
    async def vm(self, cell: Cell, image: str, limits: Limits) -> AsyncIterator[ArchitectMover]:
        """A VM of that cell, ready to be moved."""
        contact = GuestContact("the VM of architect", self._edge_address, GUEST_PORT)
        mover = ArchitectMover(self._state_dir, cell, image, contact, limits.timeout_s)
        try:
            await mover.start()
            async with contact:
                # The other host gets the image's disk with the first move, which shared storage has already.
                with contextlib.suppress(HandoverError):
                    await mover.move(Engine.ARCHITECT)
                yield mover
        finally:
            await asyncio.shield(mover.end())


class ArchitectMover:
    """Moves the VM to the other host, as a user does."""

    def __init__(self, state_dir: Path, cell: Cell, image: str, contact: GuestContact, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self.setups: dict[Engine, EngineSetup] = {}
        self._state_dir = state_dir
        self._commands = Fabric(state_dir)
        self._cell = cell
        self._image = image
        self.contact = contact

    async def start(self) -> None:
        """`architect run`. Raises: ArchitectError: as the command says."""
        memory = f"{self._cell.memory_mib}M"
        words = ("--name", VM, "--host", HOSTS[0], "--memory", memory, "--publish", f"{GUEST_PORT}:{GUEST_PORT}/udp")
        await self._commands.command("run", *words, "--json", self._image, "--", *guest_words(self._cell))

    async def end(self) -> None:
        """`architect rm --force`. Idempotent."""
        with contextlib.suppress(NotFoundError):
            await self._commands.command("rm", "--force", VM, "--json")

    async def last_words(self) -> str:
        """What the fabric says of the VM."""
        vm = await self._commands.inspect(VM)
        return f"it is {vm['state']} on {vm['host']} {vm['reason']}".strip()

    async def revive(self) -> None:
        """Start the VM anew if it does not answer.

        Raises:
            ArchitectError: it cannot be started.
        """
        if not await self.contact.is_well():
            await self.end()
            await self.start()
            await self.contact.wait_ready()

    async def move(self, engine: Engine) -> Move:
        """One move; `engine` is ours.

        Raises:
            HandoverError: it failed; carries the fabric's reason.
        """
        assert engine is Engine.ARCHITECT, engine
        here = (await self._commands.inspect(VM))["host"]
        target = next(host for host in HOSTS if host != here)
        return move_of(await self._migrate(target))

    async def _migrate(self, target: str) -> dict[str, Any]:
        """The document of a move, whether it went well or not: a command that fails prints it, too."""
        process = await asyncio.create_subprocess_exec(
            *(ARCHITECT, "--state-dir", str(self._state_dir), "migrate", VM, "--to", target, "--json"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(self._timeout_s):
                out, err = await process.communicate()
        except TimeoutError as error:
            raise HandoverError(f"move to {target}", f"not done in {self._timeout_s:.0f} s", "see `architect events`") from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        try:
            document: dict[str, Any] = json.loads(out)
        except ValueError as error:
            raise PeerError(f"move to {target}", err.decode(errors="replace").strip() or "no document", "see the logs") from error
        return document


def move_of(document: dict[str, Any]) -> Move:
    """The move that `architect migrate --json` has told of.

    Raises:
        HandoverError: it failed.
    """
    if document["outcome"] != "done":
        raise HandoverError("move", document["reason"] or document["outcome"], "see `architect events`")
    phases = tuple(Span(phase["name"], phase["start_s"], phase["end_s"]) for phase in document["phases"])
    details: dict[str, float | int | str | bool] = {
        "mode": document["mode"],
        "rounds": document["rounds"],
        "started_at": document["started_at"],
    }
    began_s = datetime.fromisoformat(document["started_at"]).timestamp()
    resumed_at_s = next((began_s + phase.end_s for phase in phases if phase.name == RESUME_PHASE), None)
    return Move(document["total_s"], document["downtime_ms"], document["bytes_sent"], phases, details, resumed_at_s)


@contextlib.asynccontextmanager
async def running_fabric(state_dir: Path) -> AsyncIterator[BenchFabric]:
    """A fabric in this network namespace; afterwards nothing of it is left but its logs in `state_dir`."""
    commands = Fabric(state_dir)
    try:
        up = await commands.up(len(HOSTS))
        yield BenchFabric(state_dir, up["edge"]["addresses"][0])
    finally:
        await asyncio.shield(commands.down())
