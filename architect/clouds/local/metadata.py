"""A host's metadata server: the cloud's protocol at 169.254.169.254:80 inside the host's namespace, served from here.

The listening socket is opened in the namespace and served by our process; it must be closed before the namespace can vanish.
"""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from aiohttp import web

from architect.clouds.local.layout import METADATA_ADDRESS, METADATA_PORT
from architect.clouds.local.metadata_aws import AwsMetadata
from architect.clouds.local.metadata_azure import AzureMetadata
from architect.clouds.local.metadata_gcp import GcpMetadata
from architect.clouds.local.notice_board import NoticeBoard
from architect.errors import HostError, UsageError
from architect.runtime.clock import Clock
from architect.runtime.namespaces import run_in_namespace

SHUTDOWN_S = 0.2


class MetadataServer:
    """One running server. `close` it."""

    def __init__(self, runner: web.AppRunner) -> None:
        self._runner = runner

    async def close(self) -> None:
        """Stop serving, break what hangs, close the socket. Idempotent."""
        await self._runner.cleanup()


def metadata_application(provider: str, board: NoticeBoard, clock: Clock) -> web.Application:
    """The protocol of a provider.

    Raises:
        UsageError: nobody speaks that provider's.
    """
    match provider:
        case "aws":
            return AwsMetadata(board, clock).application()
        case "gcp":
            return GcpMetadata(board).application()
        case "azure":
            return AzureMetadata(board).application()
        case _:
            raise UsageError(f"provider {provider!r}", "is none of aws, gcp, azure", "choose one of them")


async def serve_metadata(application: web.Application, namespace: Path) -> MetadataServer:
    """Serve in a host's namespace.

    Raises:
        HostError: the address is taken or missing there.
    """
    try:
        listener = await asyncio.to_thread(run_in_namespace, namespace, _listen)
    except OSError as error:
        raise HostError(f"metadata server in {namespace.name}", str(error), "run `architect up` again") from error
    return await serve_on(application, listener)


async def serve_on(application: web.Application, listener: socket.socket) -> MetadataServer:
    """Serve at a listening socket, which then belongs to the server."""
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=SHUTDOWN_S, handler_cancellation=True)
    await runner.setup()
    await web.SockSite(runner, listener).start()
    return MetadataServer(runner)


def _listen() -> socket.socket:
    return socket.create_server((METADATA_ADDRESS, METADATA_PORT), backlog=64)
