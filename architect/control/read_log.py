"""Reading a VM's output, also while it moves: the text has offsets, and reading goes on at the same one wherever the VM is.

A reader that does not take what comes does not hold up the host's connection: the host's stream is left, and taken up again at the
offset that was reached.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

import msgspec

from architect.control.fabric import Fabric
from architect.control.records import VmRecord
from architect.errors import ConflictError, LostError, NotFoundError, UnavailableError
from architect.model.ids import VmId
from architect.model.vm_state import VmState
from architect.wire.agent_messages import LogData, ReadLog

READ_PATIENCE_S = 3.0
FOLLOW_PATIENCE_S = 15.0


class LogPart(msgspec.Struct, frozen=True):
    """A part of the output; `data` starts at `offset`."""

    offset: int
    data: bytes


async def read_log(fabric: Fabric, name: str, offset: int, *, follow: bool) -> AsyncGenerator[LogPart]:
    """The VM's output from `offset` on; with `follow` until the VM is over.

    Raises:
        NotFoundError: there is no such VM.
        LostError: its host is gone, and the output with it.
        ConflictError: it is being created, and `follow` is not given.
        UnavailableError: its host does not answer for a while.
    """
    record = fabric.book.find_vm(name)
    vm = record.id
    failing_since_s: float | None = None
    seen = fabric.bell.count
    while True:
        record = _readable(fabric, vm, name)
        is_over = record.state.is_terminal
        try:
            if record.state is not VmState.CREATING:
                async with contextlib.aclosing(_stream(fabric, record, offset, follow=follow and not is_over)) as parts:
                    async for part in parts:
                        offset = part.offset + len(part.data)
                        failing_since_s = None
                        yield part
                failing_since_s = None
                if not follow or is_over:
                    return
            elif not follow:
                raise ConflictError(f"vm {name}", "is being created", "wait until it runs, or use --follow")
        except (UnavailableError, NotFoundError):
            now_s = fabric.clock.monotonic_s()
            failing_since_s = failing_since_s if failing_since_s is not None else now_s
            if now_s - failing_since_s > (FOLLOW_PATIENCE_S if follow else READ_PATIENCE_S):
                raise
        seen = await fabric.bell.wait_rung(seen, 0.5)


def _readable(fabric: Fabric, vm: VmId, name: str) -> VmRecord:
    record = fabric.book.vms.get(vm)
    if record is None or record.is_tombstone:
        raise NotFoundError(f"vm {name}", "was removed", "see `architect ps`")
    if record.state is VmState.LOST and not fabric.fleet.is_here(record.host):
        raise LostError(f"vm {name}", record.reason or "is lost", "its output is gone with its host")
    return record


async def _stream(fabric: Fabric, record: VmRecord, offset: int, *, follow: bool) -> AsyncGenerator[LogPart]:
    async with contextlib.aclosing(fabric.fleet.stream(record.host, ReadLog(record.id, offset, follow))) as stream:
        async for message, body in stream:
            if isinstance(message, LogData) and (data := body[max(offset - message.offset, 0) :]):
                offset = max(message.offset, offset)
                yield LogPart(offset, data)
                offset += len(data)
