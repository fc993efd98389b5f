"""`architect control`: the control plane's process. Agents over TLS, the edge over TLS, users over REST on a unix socket."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from architect.clouds import InstanceSource
from architect.control.database import Database, sqlite_url
from architect.control.plane import ControlPlane
from architect.errors import ArchitectError, UnavailableError, first_error
from architect.model.config import ControlConfig
from architect.rest.app import rest_app
from architect.runtime.clock import SystemClock, SystemEntropy
from architect.runtime.config_file import read_config
from architect.runtime.logging import configure_logging
from architect.runtime.rpc import Channel, open_channel
from architect.runtime.socket_paths import short_socket_path
from architect.runtime.tls import client_context, san_name, server_context
from architect.wire.edge_messages import EdgeMessage

SOCKET_BACKLOG = 128
SHUTDOWN_S = 2

_log = logging.getLogger(__name__)


class _Server(uvicorn.Server):
    """uvicorn, whose signals are ours."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def main(argv: list[str]) -> int:
    """Run the control plane until a signal ends it."""
    parser = argparse.ArgumentParser(prog="architect control", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="a ControlConfig as JSON")
    config_file = parser.parse_args(argv).config
    configure_logging()
    try:
        asyncio.run(_run(read_config(config_file, ControlConfig)))
    except ArchitectError as error:
        print(f"architect: {error}", file=sys.stderr)
        return error.exit_status
    return 0


async def _run(config: ControlConfig) -> None:
    state_dir = Path(config.state_dir)
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    database = Database(sqlite_url(state_dir))
    try:
        tls_dir = Path(config.tls_dir)
        plane = ControlPlane(
            config, database, functools.partial(_dial_edge, config, tls_dir), SystemClock(), SystemEntropy(), _instances(config)
        )
        await serve(plane, config, tls_dir)
    finally:
        database.close()


async def serve(plane: ControlPlane, config: ControlConfig, tls_dir: Path) -> None:
    """Serve agents and users until SIGTERM or SIGINT.

    Raises:
        UnavailableError: an address is taken.
    """
    listener = listen_at(Path(config.rest_socket))
    server = _Server(
        uvicorn.Config(rest_app(plane), lifespan="off", log_config=None, access_log=False, timeout_graceful_shutdown=SHUTDOWN_S)
    )
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    try:
        async with asyncio.TaskGroup() as group:
            work = [
                group.create_task(plane.run()),
                group.create_task(plane.desk.listen(config.address, config.port, server_context(tls_dir))),
            ]
            rest = group.create_task(server.serve([listener]))
            _log.info("control plane of %s at %s:%d and %s", config.fabric, config.address, config.port, config.rest_socket)
            await stopping.wait()
            server.should_exit = True
            await rest
            for task in work:
                task.cancel()
    except ExceptionGroup as errors:
        raise first_error(errors) from errors
    finally:
        listener.close()
        with contextlib.suppress(OSError):
            os.unlink(config.rest_socket)


def listen_at(path: Path) -> socket.socket:
    """A unix socket that only its owner may use, in place of one that a dead process left.

    Raises:
        UnavailableError: another process answers there, or the path cannot be used.
    """
    thing = f"socket {path}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with short_socket_path(path) as address:
        if _answers(address):
            raise UnavailableError(thing, "another control plane answers there", "stop it, or use another --state-dir")
        listener = socket.socket(socket.AF_UNIX)
        before = os.umask(0o177)
        try:
            path.unlink(missing_ok=True)
            listener.bind(address)
            listener.listen(SOCKET_BACKLOG)
        except OSError as error:
            listener.close()
            raise UnavailableError(thing, str(error), "use another --state-dir") from error
        finally:
            os.umask(before)
    return listener


def _answers(address: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(address) == 0


async def _dial_edge(config: ControlConfig, tls_dir: Path) -> Channel:
    return await open_channel(
        (config.edge_address, config.edge_port),
        EdgeMessage,
        None,
        f"edge {config.edge_name}",
        tls=client_context(tls_dir),
        server_name=san_name(f"edge:{config.edge_name}"),
    )


def _instances(config: ControlConfig) -> InstanceSource | None:
    """The provider that knows whether a silent host's instance is there; imported only where there is one."""
    if not config.local_state_dir:
        return None
    from architect.clouds.local.instances import LocalInstances

    return LocalInstances(Path(config.local_state_dir))
