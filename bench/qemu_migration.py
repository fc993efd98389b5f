"""QEMU's own migration from one process to another over TCP, as its documentation has it, with its limits lifted.

The pause is STOP at the source to RESUME at the target by the events' time stamps: QEMU's own figure is wrong after post-copy.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

from qemu.qmp import EventListener

from architect.drafter.machine import Machine
from architect.drafter.machine_event import event_time
from architect.drafter.qmp import QmpConnection, QmpRefusedError
from architect.errors import ArchitectError, HandoverError
from bench.qemu_disk import DiskCopy
from bench.results import Engine, EngineSetup, Limits, Move, Span

CAPABILITIES = (
    "events", "multifd", "postcopy-ram", "postcopy-preempt", "pause-before-switchover", "x-ignore-shared", "late-block-activate",
)  # fmt: skip
WANTED = {
    Engine.PRECOPY: {"events"},
    Engine.POSTCOPY: {"events", "postcopy-ram"},
    Engine.PREEMPT: {"events", "postcopy-ram", "postcopy-preempt"},
    Engine.MULTIFD: {"events", "multifd"},
    Engine.PRECOPY_TUNED: {"events"},
    Engine.MULTIFD_TUNED: {"events", "multifd"},
}
_POSTCOPY = (Engine.POSTCOPY, Engine.PREEMPT)
_TUNED = (Engine.PRECOPY_TUNED, Engine.MULTIFD_TUNED)
RESUME_TIMEOUT_S = 10.0
CANCEL_TIMEOUT_S = 5.0
_FIRST_PASS_DONE = 2


class QemuMigration:
    """One migration of the guest of `source` to `target`, its disk included if it `moves_disk`."""

    def __init__(self, engine: Engine, source: Machine, target: Machine, limits: Limits, *, moves_disk: bool) -> None:
        self._engine = engine
        self._source = source.qmp
        self._target = target.qmp
        self._limits = limits
        self._disk = DiskCopy(source, target, limits.timeout_s) if moves_disk else None
        self._stopped_at_s: float | None = None
        self._postcopy_after_s: float | None = None
        self.setup: EngineSetup | None = None

    async def run(self, port: int, began_s: float) -> Move:
        """Move; the target waits at `port`. Time counts from `began_s` (seconds since 1970), before its process was started.

        Raises:
            HandoverError: it failed, or took longer than the limit; carries QEMU's words. The source may run on (`give_up`).
        """
        uri = f"tcp:127.0.0.1:{port}"
        for end in (self._target, self._source):
            await self._set_up(end)
        self.setup = await self._setup()
        started_s = time.time()
        if self._disk is not None:
            await self._disk.catch_up()
        with self._source.listen("STOP", "MIGRATION", "MIGRATION_PASS") as source, self._target.listen("RESUME") as target:
            await self._target.execute("migrate-incoming", {"uri": uri})
            asked_s = time.time()
            await self._source.execute("migrate", {"uri": uri})
            try:
                async with asyncio.timeout(self._limits.timeout_s):
                    completed_s = await self._follow(source, asked_s)
                async with asyncio.timeout(RESUME_TIMEOUT_S):
                    resumed_s = event_time(await self._target.next_event(target))
            except TimeoutError as error:
                cause = f"not done in {self._limits.timeout_s:.0f} s: {await self._words()}"
                raise HandoverError(self._engine.value, cause, "the guest may write faster than QEMU sends") from error
        if self._disk is not None:
            await self._disk.close()
        assert self._stopped_at_s is not None, "a guest that was moved was stopped"
        times_s = (began_s, started_s, asked_s, self._stopped_at_s, resumed_s, max(completed_s, resumed_s))
        return await self._move(times_s)

    async def give_up(self) -> None:
        """After a failure: have the source run on, if it still can."""
        if self._disk is not None:
            await self._disk.give_up()
        with contextlib.suppress(ArchitectError):
            await self._source.execute("migrate_cancel")
        end_s = time.monotonic() + CANCEL_TIMEOUT_S
        while time.monotonic() < end_s:
            with contextlib.suppress(ArchitectError):
                if (await self._source.execute("query-status"))["running"]:
                    return
                await self._source.execute("cont")
            await asyncio.sleep(0.1)

    async def _set_up(self, end: QmpConnection) -> None:
        wanted = WANTED[self._engine] | ({"pause-before-switchover"} if self._disk is not None else set())
        states = [{"capability": name, "state": name in wanted} for name in CAPABILITIES]
        await end.execute("migrate-set-capabilities", {"capabilities": states})
        parameters = {"max-bandwidth": self._limits.max_bandwidth_bytes_s, "downtime-limit": self._downtime_limit_ms()}
        await end.execute("migrate-set-parameters", {**parameters, "multifd-channels": self._limits.multifd_channels})

    def _downtime_limit_ms(self) -> int:
        if self._engine in _POSTCOPY:
            return 0  # a post-copy that may end as a pre-copy after the first pass would measure pre-copy
        return self._limits.tuned_downtime_limit_ms if self._engine in _TUNED else self._limits.downtime_limit_ms

    async def _setup(self) -> EngineSetup:
        states = await self._source.execute("query-migrate-capabilities")
        capabilities = tuple(sorted(state["capability"] for state in states if state["state"]))
        parameters = await self._source.execute("query-migrate-parameters")
        return EngineSetup(self._engine, capabilities, {name: value for name, value in parameters.items() if value != ""})

    async def _follow(self, listener: EventListener, asked_s: float) -> float:
        """Until the source has nothing more to do; when that was."""
        while True:
            event = await self._source.next_event(listener)
            data: Any = event.get("data", {})
            match event["event"]:
                case "STOP":
                    self._stopped_at_s = event_time(event)
                case "MIGRATION_PASS" if data["pass"] == _FIRST_PASS_DONE and self._engine in _POSTCOPY:
                    with contextlib.suppress(QmpRefusedError):  # it has just ended by itself
                        await self._source.execute("migrate-start-postcopy")
                        self._postcopy_after_s = time.time() - asked_s
                case "MIGRATION" if data["status"] == "pre-switchover" and self._disk is not None:
                    await self._disk.finish()
                    await self._source.execute("migrate-continue", {"state": "pre-switchover"})
                case "MIGRATION" if data["status"] == "completed":
                    return event_time(event)
                case "MIGRATION" if data["status"] in ("failed", "cancelled", "postcopy-paused"):
                    raise HandoverError(self._engine.value, f"{data['status']}: {await self._words()}", "see both qemu.log")

    async def _words(self) -> str:
        try:
            info = await self._source.execute("query-migrate")
        except ArchitectError as error:
            return str(error)
        ram = info.get("ram", {})
        left = f"{ram.get('remaining', 0) >> 20} MiB left after {ram.get('dirty-sync-count', 0)} passes"
        return f"{info.get('status')}, {left}. {info.get('error-desc', '')}".strip()

    async def _move(self, times_s: tuple[float, float, float, float, float, float]) -> Move:
        """`times_s`: the request; QEMU's start at the target, the disk's copy, memory's, the stop, the resume, the end."""
        began_s, _, asked_s, stopped_s, resumed_s, ended_s = times_s
        info = await self._source.execute("query-migrate")
        ram = info["ram"]
        disk_bytes = self._disk.bytes if self._disk is not None else 0
        details: dict[str, float | int | str | bool] = {
            "stopped_at_s": stopped_s,
            "transfer_s": round(ended_s - asked_s, 4),
            "qemu_downtime_ms": info.get("downtime", -1),
            "qemu_setup_ms": info.get("setup-time", -1),
            "passes": ram.get("dirty-sync-count", 0),
            "multifd_bytes": ram.get("multifd-bytes", 0),
            "postcopy_requests": ram.get("postcopy-requests", 0),
            "disk_bytes": disk_bytes,
        }
        if self._engine in _POSTCOPY:
            details["went_postcopy"] = self._postcopy_after_s is not None and "postcopy-bytes" in ram
            details["postcopy_after_s"] = round(self._postcopy_after_s or -1.0, 4)
            details["postcopy_bytes"] = ram.get("postcopy-bytes", 0)
        names = ("start", "disk", "precopy", "pause", "after")
        spans = zip(names, times_s, times_s[1:], strict=False)
        phases = tuple(Span(name, round(at - began_s, 4), round(end - began_s, 4)) for name, at, end in spans)
        downtime_ms = round((resumed_s - stopped_s) * 1000, 3)
        sent = int(ram["transferred"]) + disk_bytes
        return Move(round(ended_s - began_s, 4), downtime_ms, sent, phases, details, resumed_s)
