"""Is the fabric ready? Each process takes connections, and the control plane says that each host has introduced itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import aiohttp
import msgspec

from architect.clouds.local.layout import CONTROL_PORT, EDGE_PORT, MIGRATION_PORT, FabricLayout, StateFolder
from architect.clouds.local.process_table import ProcessTable
from architect.clouds.local.record import PresenceState, RecordStore, agent_name
from architect.errors import UnavailableError
from architect.runtime.clock import Clock
from architect.runtime.logging import last_line
from architect.runtime.socket_paths import short_socket_path

POLL_S = 0.1
PROBE_TIMEOUT_S = 1.0
FAILURES_MAX = 5
HOSTS_URL = "http://control/v1/hosts"
HERE_STATES = ("ready", "draining", "leaving")


class _Host(msgspec.Struct, frozen=True):
    name: str
    state: str


_HOSTS_DECODER = msgspec.json.Decoder(list[_Host])


class Readiness:
    """Waits for the processes of one fabric."""

    def __init__(
        self,
        folder: StateFolder,
        layout: FabricLayout,
        store: RecordStore,
        table: ProcessTable,
        clock: Clock,
        *,
        says_hello: bool,
    ) -> None:
        self._folder = folder
        self._layout = layout
        self._store = store
        self._table = table
        self._clock = clock
        self._says_hello = says_hello

    async def wait_ready(self, timeout_s: float, tell: Callable[[str], Awaitable[None]]) -> None:
        """Wait until everything is ready; hosts that vanish meanwhile are not waited for.

        Raises:
            UnavailableError: something is not ready in time, or ends again and again; names it, its last words and its log.
        """
        end_s = self._clock.monotonic_s() + timeout_s
        told: set[str] = set()
        while True:
            missing = await self._missing()
            for name in sorted(self._names() - missing - told):
                told.add(name)
                await tell(f"{title(name)} is ready")
            if not missing:
                return
            for name in sorted(missing):
                self._check(name, is_late=self._clock.monotonic_s() > end_s, timeout_s=timeout_s)
            await self._clock.sleep(POLL_S)

    def _names(self) -> set[str]:
        present = [host for host in self._store.record.hosts.values() if host.state is PresenceState.PRESENT]
        return {"control", "edge", *(agent_name(host.name) for host in present)}

    async def _missing(self) -> set[str]:
        addresses = {
            "control": (str(self._layout.machine_link.inner_address), CONTROL_PORT),
            "edge": (str(self._layout.edge_link.inner_address), EDGE_PORT),
        }
        for host in self._store.record.hosts.values():
            address = str(self._layout.host_link(host.slot).inner_address)
            addresses[agent_name(host.name)] = (address, MIGRATION_PORT)
        names = sorted(self._names())
        answers = await asyncio.gather(*(_takes_connections(*addresses[name]) for name in names))
        missing = {name for name, answer in zip(names, answers, strict=True) if not answer}
        if missing or not self._says_hello:
            return missing
        here = await self._hosts_that_said_hello()
        return {"control"} if here is None else {name for name in names if name.startswith("agent-")} - here

    async def _hosts_that_said_hello(self) -> set[str] | None:
        timeout = aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S * 5)
        try:
            with short_socket_path(self._folder.rest_socket) as path:
                async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(path), timeout=timeout) as session:
                    async with session.get(HOSTS_URL) as response:
                        if response.status != 200:
                            return None
                        hosts = _HOSTS_DECODER.decode(await response.read())
        except (aiohttp.ClientError, OSError, TimeoutError, msgspec.MsgspecError):
            return None
        return {agent_name(host.name) for host in hosts if host.state in HERE_STATES}

    def _check(self, name: str, *, is_late: bool, timeout_s: float) -> None:
        kept = self._table.find(name)
        failures = 0 if kept is None else kept.failures
        if not is_late and failures < FAILURES_MAX:
            return
        log = self._table.log_path(name)
        ended = f"it {kept.last_end} ({failures} times)" if kept is not None and failures else f"not ready after {timeout_s:.0f} s"
        words = last_line(log)
        cause = ended + (f", and said last: {words[:300]}" if words else "")
        raise UnavailableError(title(name), cause, f"read {log}")


def title(name: str) -> str:
    """How people are told of a process."""
    titles = {"control": "control plane", "edge": "edge"}
    return titles.get(name) or name.replace("agent-", "host ", 1)


async def _takes_connections(address: str, port: int) -> bool:
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            _, writer = await asyncio.open_connection(address, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True
