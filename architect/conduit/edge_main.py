"""`architect edge --config FILE`: the edge's process. Its end, however it comes, breaks no flow: programs and maps stay."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from architect.conduit.edge_datapath import EdgeDatapath
from architect.conduit.edge_server import EdgeServer
from architect.conduit.edge_store import EdgeStore
from architect.conduit.edge_table import EdgePorts
from architect.conduit.flow_aging import FlowTimeouts
from architect.errors import ArchitectError, HostError
from architect.model.config import EdgeConfig
from architect.runtime.clock import Clock, SystemClock
from architect.runtime.config_file import read_config
from architect.runtime.logging import configure_logging
from architect.runtime.tls import server_context

_log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the edge until SIGTERM or SIGINT; the process's exit status."""
    parser = argparse.ArgumentParser(prog="architect edge", description="Own the public addresses and the flows of VMs.")
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the edge's configuration (JSON)")
    options = parser.parse_args(arguments)
    configure_logging()
    try:
        asyncio.run(run_edge(read_config(options.config, EdgeConfig)))
    except ArchitectError as error:
        print(f"architect edge: {error}", file=sys.stderr)
        return error.exit_status
    return 0


async def run_edge(config: EdgeConfig, clock: Clock | None = None, ready: Callable[[], None] = lambda: None) -> None:
    """Attach the datapath, take up the stored table, call `ready`, serve until SIGTERM or SIGINT (or cancelled).

    Raises:
        HostError: this machine lacks something, named, or the port is taken.
        ConflictError: another node has its tunnel in this network namespace.
    """
    datapath = EdgeDatapath(config.fabric, config.name, config.nic, config.underlay_address, config.public_addresses, config.port)
    datapath.attach()
    ports = EdgePorts(config.public_addresses, config.port)
    server = EdgeServer(datapath, EdgeStore(Path(config.state_dir)), ports, config.underlay_address)
    try:
        server.restore()
        await _serve(config, server, clock or SystemClock(), ready)
    finally:
        datapath.close()


async def _serve(config: EdgeConfig, server: EdgeServer, clock: Clock, ready: Callable[[], None]) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        try:
            await server.serve(reader, writer)
        finally:
            connections.discard(task)

    try:
        tls = server_context(Path(config.tls_dir))
        listener = await asyncio.start_server(serve, config.underlay_address, config.port, ssl=tls)
    except OSError as error:
        raise HostError(
            f"edge at {config.underlay_address}:{config.port}",
            str(error),
            "see that the address is this machine's and the port free",
        ) from error
    aging = asyncio.create_task(server.keep_aging(clock, FlowTimeouts()))
    try:
        _log.info("edge %s serves at %s:%s", config.name, config.underlay_address, config.port)
        ready()
        await stopped.wait()
    finally:
        listener.close()
        for task in (aging, *connections):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(aging, *connections, return_exceptions=True)


if __name__ == "__main__":
    sys.exit(main())
