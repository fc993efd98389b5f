"""QEMU's own migration from one process to another over TCP, as its documentation has it, with its limits lifted.

The pause is STOP at the source to RESUME at the target by the events' time stamps: QEMU's own figure is wrong after post-copy.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

from qemu.qmp import EventListener

from architect.drafter.machine_event import event_time
from architect.drafter.qmp import QmpConnection, QmpRefusedError
from architect.errors import ArchitectError, HandoverError
from bench.results import Engine, Limits, Move

CAPABILITIES = ("events", "multifd", "postcopy-ram", "x-ignore-shared", "late-block-activate")
WANTED = {
    Engine.PRECOPY: {"events"},
    Engine.POSTCOPY: {"events", "postcopy-ram"},
    Engine.MULTIFD: {"events", "multifd"},
}
RESUME_TIMEOUT_S = 10.0
CANCEL_TIMEOUT_S = 5.0
_FIRST_PASS_DONE = 2


class QemuMigration:
    """One migration of the guest of `source` to `target`, who waits for it at `port`."""

    def __init__(self, engine: Engine, source: QmpConnection, target: QmpConnection, limits: Limits) -> None:
        self._engine = engine
        self._source = source
        self._target = target
        self._limits = limits
        self._stopped_at_s: float | None = None
        self._postcopy_after_s: float | None = None

    async def run(self, port: int, began_s: float) -> Move:
        """Move; the time counts from `began_s` (seconds since 1970), before the target's process was started.

        Raises:
            HandoverError: it failed, or took longer than the limit; carries QEMU's words. The source may run on (`give_up`).
        """
        uri = f"tcp:127.0.0.1:{port}"
        for end in (self._target, self._source):
            await self._set_up(end)
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
        assert self._stopped_at_s is not None, "a guest that was moved was stopped"
        return await self._move(began_s, asked_s, completed_s, resumed_s)

    async def give_up(self) -> None:
        """After a failure: have the source run on, if it still can."""
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
        wanted = WANTED[self._engine]
        states = [{"capability": name, "state": name in wanted} for name in CAPABILITIES]
        await end.execute("migrate-set-capabilities", {"capabilities": states})
        # A post-copy that may end as a pre-copy after the first pass would measure pre-copy.
        downtime_ms = 0 if self._engine is Engine.POSTCOPY else self._limits.downtime_limit_ms
        parameters = {"max-bandwidth": self._limits.max_bandwidth_bytes_s, "downtime-limit": downtime_ms}
        await end.execute("migrate-set-parameters", {**parameters, "multifd-channels": self._limits.multifd_channels})

    async def _follow(self, listener: EventListener, asked_s: float) -> float:
        """Until the source has nothing more to do; when that was."""
        while True:
            event = await self._source.next_event(listener)
            data: Any = event.get("data", {})
            match event["event"]:
                case "STOP":
                    self._stopped_at_s = event_time(event)
                case "MIGRATION_PASS" if data["pass"] == _FIRST_PASS_DONE and self._engine is Engine.POSTCOPY:
                    with contextlib.suppress(QmpRefusedError):  # it has just ended by itself
                        await self._source.execute("migrate-start-postcopy")
                        self._postcopy_after_s = time.time() - asked_s
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

    async def _move(self, began_s: float, asked_s: float, completed_s: float, resumed_s: float) -> Move:
        info = await self._source.execute("query-migrate")
        ram = info["ram"]
        assert self._stopped_at_s is not None
        details: dict[str, float | int | str | bool] = {
            "stopped_at_s": self._stopped_at_s,
            "resumed_at_s": resumed_s,
            "transfer_s": round(max(completed_s, resumed_s) - asked_s, 4),
            "qemu_downtime_ms": info.get("downtime", -1),
            "qemu_setup_ms": info.get("setup-time", -1),
            "passes": ram.get("dirty-sync-count", 0),
            "multifd_bytes": ram.get("multifd-bytes", 0),
            "postcopy_requests": ram.get("postcopy-requests", 0),
        }
        if self._engine is Engine.POSTCOPY:
            details["went_postcopy"] = self._postcopy_after_s is not None and "postcopy-bytes" in ram
            details["postcopy_after_s"] = round(self._postcopy_after_s or -1.0, 4)
            details["postcopy_bytes"] = ram.get("postcopy-bytes", 0)
        downtime_ms = (resumed_s - self._stopped_at_s) * 1000
        total_s = max(completed_s, resumed_s) - began_s
        return Move(round(total_s, 4), round(downtime_ms, 3), int(ram["transferred"]), (), details)
