"""The long-running processes of a local fabric: which there are, that each runs, and that none is started twice."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from architect.clouds.local.layout import StateFolder, fabric_mark
from architect.clouds.local.options import PACKAGE_ROOT
from architect.clouds.local.record import RecordStore
from architect.runtime.clock import Clock
from architect.runtime.processes import (
    ProcessIdentity,
    SpawnOptions,
    all_processes,
    command_line,
    is_alive,
    spawn_process,
)
from architect.runtime.supervision import AdoptedProcess, ChildProcess, KeptProcess, Running


class Role(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One process: its name, command, configuration, and the namespace that it runs in (None: the machine's)."""

    name: str
    command: tuple[str, ...]
    config: Path
    namespace: Path | None = None
    marks: tuple[str, ...] = ()


class ProcessTable:
    """Keeps the processes of one fabric running; its tasks live in the group of the supervisor."""

    def __init__(self, folder: StateFolder, store: RecordStore, group: asyncio.TaskGroup, clock: Clock) -> None:
        self._folder = folder
        self._store = store
        self._group = group
        self._clock = clock
        self._kept: dict[str, tuple[KeptProcess, asyncio.Task[None]]] = {}

    def keep(self, role: Role) -> None:
        """Have this process running from now on; one that an earlier supervisor started is adopted. Idempotent."""
        if role.name in self._kept:
            return
        adopted = self._find(role)
        if adopted is not None:
            self._started(role.name, adopted)

        async def start() -> Running:
            # A cancellation while it starts must not lose the process: it is recorded before we go.
            starting = asyncio.ensure_future(asyncio.to_thread(spawn_process, self._spawn_options(role)))
            try:
                identity, child = await asyncio.shield(starting)
            except asyncio.CancelledError:
                with contextlib.suppress(Exception):
                    self._started(role.name, (await starting)[0])
                raise
            return ChildProcess(identity, child)

        kept = KeptProcess(
            role.name,
            start,
            lambda identity: self._started(role.name, identity),
            self._clock,
            adopted=None if adopted is None else AdoptedProcess(adopted),
        )
        self._kept[role.name] = (kept, self._group.create_task(kept.run(), name=f"keep {role.name}"))

    async def drop(self, name: str) -> Running | None:
        """Keep it no longer; the process, if it runs, goes on and is returned. Idempotent."""
        kept, task = self._kept.pop(name, (None, None))
        if kept is None or task is None:
            return None
        task.cancel()
        await asyncio.wait([task])
        return kept.running

    def find(self, name: str) -> KeptProcess | None:
        """The keeping of that process."""
        kept, _ = self._kept.get(name, (None, None))
        return kept

    def pid(self, name: str) -> int:
        """Its pid; 0 while it does not run."""
        kept = self.find(name)
        return kept.identity.pid if kept is not None and kept.identity is not None else 0

    def log_path(self, name: str) -> Path:
        """Where its output goes."""
        return self._folder.logs / f"{name}.log"

    def _spawn_options(self, role: Role) -> SpawnOptions:
        return SpawnOptions(
            arguments=(*role.command, "--config", str(role.config)),
            folder=self._folder.root,
            log_path=self.log_path(role.name),
            namespace=role.namespace,
            environment=process_environment((fabric_mark(self._folder.fabric), *role.marks)),
        )

    def _find(self, role: Role) -> ProcessIdentity | None:
        """The process that runs for this role: as recorded, or, if its supervisor died before it wrote, by its command line."""
        recorded = self._store.record.processes.get(role.name)
        if recorded is not None and is_alive(recorded):
            return recorded
        tail = ["--config", str(role.config)]
        return next((process for process in all_processes() if command_line(process)[-2:] == tail), None)

    def _started(self, name: str, identity: ProcessIdentity) -> None:
        self._store.change(self._store.record.with_process(name, identity))


def process_environment(marks: tuple[str, ...]) -> Mapping[str, str]:
    """The environment of a fabric's process: its marks, and where this package lies, should it not be installed."""
    named = (mark.partition("=") for mark in marks)
    return {"PYTHONPATH": str(PACKAGE_ROOT), **{name: value for name, _, value in named}}
