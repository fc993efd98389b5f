"""Routes about hosts, events, and the control plane itself."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query
from fastapi.responses import Response

from architect.control.evacuate import drain_host, set_draining
from architect.control.fabric import Fabric
from architect.control.followers import Progress
from architect.control.remove_host import remove_host
from architect.control.views import DrainView, EventView, HostView, event_views, host_view
from architect.rest.answers import ResultLine, document, lines
from architect.rest.documentation import answers
from architect.version import VERSION


class StatusView(msgspec.Struct, frozen=True):
    """Who answers, and whether the edge is connected; `public_addresses` are the edge's."""

    version: str
    fabric: str
    edge_connected: bool
    public_addresses: tuple[str, ...]


class EventsEnd(msgspec.Struct, frozen=True):
    """All events so far were told; give `sequence` as `after` to go on."""

    sequence: int


def fabric_routes(fabric: Fabric) -> APIRouter:
    """All routes under /v1 that are not about VMs."""
    router = APIRouter(prefix="/v1", tags=["fabric"])

    @router.get("/status", responses=answers("the control plane", StatusView))
    async def status() -> Response:
        """The control plane answers."""
        addresses = fabric.edge.facts.public_addresses if fabric.edge.facts is not None else ()
        return document(StatusView(VERSION, fabric.config.fabric, fabric.edge.is_connected, addresses))

    @router.get("/hosts", responses=answers("all hosts, by name", list[HostView]))
    async def list_hosts() -> Response:
        """All hosts."""
        return document([host_view(fabric, record) for _, record in sorted(fabric.book.hosts.items())])

    @router.post("/hosts/{host}/drain", responses=answers("progress, then what left", Progress, DrainView, streams=True))
    async def drain(host: str) -> Response:
        """Move all VMs away; the host takes none until it is opened."""
        return await lines(_drained(fabric, host))

    @router.post("/hosts/{host}/open", responses=answers("the host", HostView))
    async def open_host(host: str) -> Response:
        """Take VMs again after a drain."""
        return document(host_view(fabric, await set_draining(fabric, host, draining=False)))

    @router.delete("/hosts/{host}", responses=answers("the host, as it was", HostView))
    async def remove(host: str, force: bool = False) -> Response:
        """Forget a host that no VM needs; with `force` any, and VMs that need it are lost."""
        view = host_view(fabric, fabric.book.find_host(host))
        await remove_host(fabric, host, force=force)
        return document(view)

    @router.get("/events", responses=answers("events, oldest first", EventView, EventsEnd, streams=True))
    async def events(follow: bool = False, after: Annotated[int, Query(ge=0)] = 0) -> Response:
        """What happened after the event with sequence number `after`; with `follow` also what will."""
        return await lines(_events(fabric, after, follow=follow))

    return router


async def _drained(fabric: Fabric, host: str) -> AsyncGenerator[Any]:
    async for item in drain_host(fabric, host):
        yield ResultLine(item) if isinstance(item, DrainView) else item


async def _events(fabric: Fabric, after: int, *, follow: bool) -> AsyncGenerator[Any]:
    seen = fabric.bell.count
    while True:
        while news := await event_views(fabric, after):
            for event in news:
                after = event.sequence
                yield event
        if not follow:
            yield ResultLine(EventsEnd(after))
            return
        seen = await fabric.bell.wait_rung(seen)
