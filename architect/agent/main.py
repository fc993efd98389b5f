"""`architect agent`: the daemon of one host. Killed with `-9`, it stops no VM; started again, it finds them.

Composition root: makes the host, the VMs' table, the handovers, the notice watch and the link to the control plane, and runs them
in one task group.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import gc
import logging
import signal
import sys
from pathlib import Path

from architect.agent.control_link import ControlLink, dial_control
from architect.agent.host import Host, open_host
from architect.agent.lease_keeper import LeaseKeeper
from architect.agent.moves import Moves
from architect.agent.notice_watch import NoticeWatch
from architect.agent.recovery import recover_all
from architect.agent.service import AgentService
from architect.agent.vm_table import VmTable
from architect.clouds import NoticeSource
from architect.errors import ArchitectError, HostError, first_error
from architect.model.config import AgentConfig
from architect.runtime.config_file import read_config
from architect.runtime.logging import configure_logging

_log = logging.getLogger(__name__)


class _Changed:
    """Where "something changed" goes; before the link exists, nowhere."""

    def __init__(self) -> None:
        self.link: ControlLink | None = None

    def __call__(self) -> None:
        if self.link is not None:
            self.link.changed()


def main(argv: list[str]) -> int:
    """Run until told to end; returns the exit status."""
    parser = argparse.ArgumentParser(prog="architect agent", description="The daemon of one host.")
    parser.add_argument("--config", type=Path, required=True, help="AgentConfig as JSON")
    options = parser.parse_args(argv)
    configure_logging()
    try:
        config = read_config(options.config, AgentConfig)
        asyncio.run(_run(config))
    except ArchitectError as error:
        print(f"architect agent: {error}", file=sys.stderr)
        return error.exit_status
    return 0


async def _run(config: AgentConfig) -> None:
    main_task = asyncio.current_task()
    assert main_task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, main_task.cancel)
    changed = _Changed()
    host = await open_host(config, changed)
    gc.freeze()  # what lives for ever is not looked at again by the collector, whose pauses would be the guests'
    with contextlib.suppress(asyncio.CancelledError):
        await _serve(host, changed)
    host.memory_server.close()
    host.datapath.close()


async def _serve(host: Host, changed: _Changed) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            config = host.config
            table = VmTable(host)
            moves = Moves(host, table, group)
            notices = NoticeWatch(functools.partial(_open_notices, host), changed)
            service = AgentService(host, table, moves, notices, group)
            link = changed.link = ControlLink(dial_control(config), host.facts, service.report, service.handle)
            group.create_task(host.edge.run())
            group.create_task(moves.run())
            group.create_task(LeaseKeeper(host, table, moves).run())
            group.create_task(_warm_up(host))
            await moves.ready.wait()
            await recover_all(host, table, moves, group)
            moves.known.set()
            group.create_task(notices.run())
            group.create_task(link.run())
    except ExceptionGroup as errors:
        raise first_error(errors) from errors


def _open_notices(host: Host) -> NoticeSource:
    """The cloud's notices, opened when VMs are looked after: the HTTP client's import takes longer than finding them."""
    from architect.clouds.providers import open_notice_source

    config = host.config
    return open_notice_source(config.provider, config.metadata_url, config.instance, host.clock)


async def _warm_up(host: Host) -> None:
    """Have the server of memory processes ready before the first is wanted."""
    try:
        await host.memory_server.start()
    except HostError as error:
        _log.warning("%s", error)  # the next VM tries again, and says so


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
