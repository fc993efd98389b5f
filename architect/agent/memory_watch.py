"""What becomes of a VM whose memory process ends, but QEMU does not: another memory process goes on with the same memory.

A VM that came by a move waits at its next page of zeros until then, so it is done at once. A move that was under way fails with the
connection; the next one starts anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from architect.agent.host import Host
from architect.agent.vm_parts import VmParts, replace_memory
from architect.agent.vm_record import VmFolder
from architect.errors import ArchitectError, LostError
from architect.model.vm_spec import VmSpec
from architect.silo.memory_client import MemoryProcess

ATTEMPTS = 5
RETRY_S = 0.5
REPLACED_WITHIN_S = 30.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MemoryEvents:
    """Whom to tell: `ended` of a process that has, `replaced` of the one that goes on, `lost` of the reason why there is none."""

    ended: Callable[[MemoryProcess], Awaitable[None]]
    replaced: Callable[[MemoryProcess], Awaitable[None]]
    lost: Callable[[str], Awaitable[None]]


async def keep_memory(host: Host, folder: VmFolder, spec: VmSpec, parts: VmParts, events: MemoryEvents) -> None:
    """Replace the memory process whenever it ends, as long as QEMU runs."""
    while True:
        await parts.memory.wait_closed()
        if _has_ended(parts):
            return
        name = spec.request.name
        _log.warning("vm %s: its memory process ended; starting another", name)
        await events.ended(parts.memory)
        try:
            await _replace(host, folder, spec, parts)
        except ArchitectError as error:
            if _has_ended(parts):
                return
            await events.lost(f"cannot be replaced ({error.cause})")
            return
        _log.warning("vm %s: memory process %d goes on", name, parts.memory.pid)
        await events.replaced(parts.memory)


async def wait_replaced(vm: str, parts: VmParts | None, ended: MemoryProcess) -> None:
    """Until `keep_memory` has replaced the memory process that ended.

    Raises:
        LostError: there is no other one in time, or can be none: QEMU, who had the memory, too, has ended as well.
    """
    try:
        async with asyncio.timeout(REPLACED_WITHIN_S):
            while parts is not None and not _has_ended(parts):
                if parts.memory is not ended:
                    return
                await asyncio.sleep(0.02)
    except TimeoutError as error:
        raise LostError(f"memory of vm {vm}", "its memory process ended", "see its log") from error
    raise LostError(f"memory of vm {vm}", "its memory process and its QEMU have both ended", "see their logs in the VM's folder")


async def _replace(host: Host, folder: VmFolder, spec: VmSpec, parts: VmParts) -> None:
    for attempt in range(ATTEMPTS):
        try:
            parts.memory = await replace_memory(host, folder, spec)
            return
        except ArchitectError as error:
            if attempt + 1 == ATTEMPTS or _has_ended(parts):
                raise
            _log.warning("vm %s: memory process: %s", spec.request.name, error)
            await asyncio.sleep(RETRY_S)


def _has_ended(parts: VmParts) -> bool:
    return not parts.machine.is_running
