"""Block jobs of a running machine: progress, the wait for an end, and ending one that nobody wants."""

from __future__ import annotations

from typing import Any

import msgspec

from architect.drafter.machine_event import BlockJobEnded, BlockJobReady, MachineEvent, parse_event
from architect.drafter.qmp import QmpConnection, QmpRefusedError
from architect.errors import HostError, NotFoundError

END_TIMEOUT_S = 10.0
_EVENTS = ("BLOCK_JOB_READY", "BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED", "BLOCK_JOB_ERROR")


class JobGoneError(HostError):
    """A job that is wanted has ended before."""


class JobProgress(msgspec.Struct, frozen=True):
    """How a job stands. The total grows while the guest writes; `is_ready`: it has caught up and follows."""

    done_bytes: int
    total_bytes: int
    is_ready: bool

    @property
    def left_bytes(self) -> int:
        """What is still to be copied."""
        return max(0, self.total_bytes - self.done_bytes)


async def find_job(qmp: QmpConnection, job: str) -> JobProgress | None:
    """How a job stands, None if there is none of that name (any more)."""
    for found in await qmp.execute("query-block-jobs"):
        if found["device"] == job:
            return JobProgress(int(found["offset"]), int(found["len"]), bool(found["ready"]))
    return None


async def wait_ready(qmp: QmpConnection, vm: str, job: str, timeout_s: float) -> None:
    """Wait until the job has caught up.

    Raises:
        HostError: it ended instead; carries its error.
        TimeoutError: it still copies.
    """
    with qmp.listen(*_EVENTS) as listener:
        state = await find_job(qmp, job)
        if state is None:
            raise NotFoundError(f"{vm}: block job {job}", "it does not exist", "start it")
        if not state.is_ready:
            ended = await _next_of(qmp, listener, job, timeout_s, until_ready=True)
            if isinstance(ended, BlockJobEnded):
                raise _failure(vm, ended)


async def finish_job(qmp: QmpConnection, vm: str, job: str, command: str, arguments: dict[str, Any], timeout_s: float) -> None:
    """Run the command that lets a job end, and wait until it has ended well.

    Raises:
        HostError: it ended badly; carries its error.
        JobGoneError: it had ended before; only who listened then knows its error.
        TimeoutError: it has not ended; it may still.
    """
    with qmp.listen(*_EVENTS) as listener:
        try:
            await qmp.execute(command, arguments)
        except QmpRefusedError as error:
            if await find_job(qmp, job) is not None:
                raise
            raise JobGoneError(f"{vm}: {job}", "has ended early", "see the disks and the connection on both hosts") from error
        ended = await _next_of(qmp, listener, job, timeout_s, until_ready=False)
        if not isinstance(ended, BlockJobEnded) or ended.cancelled or ended.error:
            raise _failure(vm, ended)


async def wait_job(qmp: QmpConnection, vm: str, job: str, timeout_s: float | None) -> None:
    """Wait until a job that ends by itself has ended well, or is not there any more.

    Raises:
        HostError: it ended badly; carries its error.
        TimeoutError: it still runs.
    """
    with qmp.listen(*_EVENTS) as listener:
        if await find_job(qmp, job) is None:
            return
        ended = await _next_of(qmp, listener, job, timeout_s, until_ready=False)
        if not isinstance(ended, BlockJobEnded) or ended.cancelled or ended.error:
            raise _failure(vm, ended)


async def abandon_job(qmp: QmpConnection, job: str, timeout_s: float = END_TIMEOUT_S) -> None:
    """End a job without its result, and wait until it is gone. Idempotent.

    Raises:
        TimeoutError: it is not gone.
    """
    with qmp.listen(*_EVENTS) as listener:
        if await find_job(qmp, job) is None:
            return
        try:
            await qmp.execute("block-job-cancel", {"device": job, "force": True})
        except QmpRefusedError:
            if await find_job(qmp, job) is None:
                return
            raise
        await _next_of(qmp, listener, job, timeout_s, until_ready=False)


async def _next_of(qmp: QmpConnection, listener: Any, job: str, timeout_s: float | None, *, until_ready: bool) -> MachineEvent:
    # A timeout for the whole wait would restart with each foreign event; foreign events are rare enough here to not matter.
    while True:
        event = parse_event(await qmp.next_event(listener, timeout_s))
        match event:
            case BlockJobEnded() if event.job == job:
                return event
            case BlockJobReady() if event.job == job and until_ready:
                return event


def _failure(vm: str, event: MachineEvent) -> HostError:
    cause = event.error if isinstance(event, BlockJobEnded) and event.error else "it was cancelled, or had not caught up"
    return HostError(f"{vm}: block job", cause, "see the disks and the connection on both hosts")
