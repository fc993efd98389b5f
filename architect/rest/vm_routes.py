"""Routes about VMs: requests into use cases, their values into answers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from architect.control import end_vm, read_log
from architect.control.exec_vm import ExecPart, ExecResult, ExecStarted
from architect.control.fabric import Fabric
from architect.control.followers import Follower, Progress
from architect.control.move_vm import migrate_vm
from architect.control.plane import ControlPlane
from architect.control.run_vm import run_vm
from architect.control.views import MigrationView, VmView, migration_view, vm_view
from architect.errors import NotFoundError, UsageError
from architect.model.ids import MigrationId
from architect.rest.answers import ResultLine, document, lines
from architect.rest.bodies import ExecBody, MigrateBody, RunBody, StopBody
from architect.rest.documentation import answers

INPUT_BYTES_MAX = 1 << 20


def vm_routes(plane: ControlPlane) -> APIRouter:
    """All routes under /v1/vms and /v1/migrations."""
    router = APIRouter(prefix="/v1", tags=["vms"])
    _reading_routes(router, plane.fabric)
    _changing_routes(router, plane.fabric)
    _moving_routes(router, plane.fabric)
    _exec_routes(router, plane)
    return router


def _reading_routes(router: APIRouter, fabric: Fabric) -> None:
    @router.get("/vms", responses=answers("all VMs, oldest first", list[VmView]))
    async def list_vms() -> Response:
        """All VMs."""
        records = sorted(fabric.book.vms.values(), key=lambda record: record.created_at_s)
        return document([vm_view(fabric, record) for record in records if not record.is_tombstone])

    @router.get("/vms/{vm}", responses=answers("the VM", VmView))
    async def inspect_vm(vm: str) -> Response:
        """One VM, by name or id."""
        return document(vm_view(fabric, fabric.book.find_vm(vm)))

    @router.get("/vms/{vm}/logs", responses=answers("parts of the output, data in base64", read_log.LogPart, LogEnd, streams=True))
    async def read_logs(vm: str, offset: Annotated[int, Query(ge=0)] = 0, follow: bool = False) -> Response:
        """The VM's output from a byte offset on."""
        return await lines(_logged(fabric, vm, offset, follow=follow))


def _changing_routes(router: APIRouter, fabric: Fabric) -> None:
    @router.post("/vms", responses=answers("progress, then the VM", Progress, VmView, streams=True))
    async def run(body: RunBody) -> Response:
        """Run a VM; the stream ends when it runs. It is created also if the client leaves."""
        record, follower = await run_vm(fabric, body.wish())
        name = record.request.name
        return await lines(
            _followed(fabric, record.id, follower, Progress(f"{name} goes to {record.host}", vm=record.id, name=name))
        )

    @router.post("/vms/{vm}/stop", responses=answers("the VM, stopped", VmView))
    async def stop(vm: str, body: StopBody) -> Response:
        """Stop a VM and wait until it is over."""
        return document(vm_view(fabric, await end_vm.stop_vm(fabric, vm, body.grace_s)))

    @router.delete("/vms/{vm}", responses=answers("the VM, as it was", VmView))
    async def remove(vm: str, force: bool = False) -> Response:
        """Remove a VM that is over; with `force` one that runs, too."""
        return document(vm_view(fabric, await end_vm.remove_vm(fabric, vm, force=force)))


def _moving_routes(router: APIRouter, fabric: Fabric) -> None:
    @router.post("/vms/{vm}/migrate", responses=answers("progress, then the move", Progress, MigrationView, streams=True))
    async def migrate(vm: str, body: MigrateBody) -> Response:
        """Move a VM; the stream ends when the move has. It goes on also if the client leaves."""
        record, follower = await migrate_vm(fabric, body.wish(vm))
        return await lines(_followed(fabric, record.id, follower, Progress("planned", 0.0, record.id)))

    @router.get("/migrations", responses=answers("moves, oldest first", list[MigrationView]))
    async def list_migrations(of: str = "") -> Response:
        """Moves that go on or ended not long ago; with `of` the one with that id, or those of the VM with that name."""
        wanted = [move.id for move in fabric.book.moves.values() if of in ("", move.id, move.vm_name)]
        return document([migration_view(record) for record in await fabric.book.read_moves(wanted)])

    @router.get("/migrations/{migration}", responses=answers("the move", MigrationView))
    async def inspect_migration(migration: str) -> Response:
        """One move."""
        for record in await fabric.book.read_moves([MigrationId(migration)]):
            return document(migration_view(record))
        raise NotFoundError(f"move {migration}", "does not exist", "see `architect events`")


def _exec_routes(router: APIRouter, plane: ControlPlane) -> None:
    @router.post("/vms/{vm}/exec", responses=answers("output, data in base64", ExecStarted, ExecPart, streams=True))
    async def run_command(vm: str, body: ExecBody) -> Response:
        """Run a command in the VM; the first line names the session that takes input."""
        return await lines(_executed(plane, vm, body))

    @router.post("/exec/{session}/input", status_code=200)
    async def give_input(session: str, request: Request, end: bool = False, rows: int = 0, columns: int = 0) -> Response:
        """Input for a command, as the raw body; `end` closes it; `rows` and `columns` resize its terminal."""
        data = await request.body()
        if len(data) > INPUT_BYTES_MAX:
            raise UsageError("input", f"over {INPUT_BYTES_MAX} bytes at once", "give it in parts")
        await plane.sessions.give_input(session, data, end=end, rows=rows, columns=columns)
        return document({})


class LogEnd(msgspec.Struct, frozen=True):
    """The end of what there is to read."""

    offset: int


async def _logged(fabric: Fabric, vm: str, offset: int, *, follow: bool) -> AsyncGenerator[Any]:
    async with contextlib.aclosing(read_log.read_log(fabric, vm, offset, follow=follow)) as parts:
        async for part in parts:
            yield part
            offset = part.offset + len(part.data)
    yield ResultLine(LogEnd(offset))


async def _executed(plane: ControlPlane, vm: str, body: ExecBody) -> AsyncGenerator[Any]:
    async with contextlib.aclosing(plane.sessions.run(body.wish(vm))) as items:
        async for item in items:
            yield ResultLine(item) if isinstance(item, ExecResult) else item


async def _followed(fabric: Fabric, key: str, follower: Follower, first: Progress) -> AsyncGenerator[Any]:
    """What a follower hears, its end as the result."""
    try:
        yield first
        async for item in follower.follow():
            yield item if isinstance(item, Progress) else ResultLine(item)
    finally:
        fabric.followers.leave(key, follower)
