"""The agent's connection to its control plane: dialled again for ever, reports while it stands.

Reports carry the whole state, so a lost connection loses nothing; the control plane may be away for as long as it likes and no
VM notices.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from architect.errors import first_error
from architect.model.config import AgentConfig
from architect.runtime.redial import redial_forever
from architect.runtime.rpc import Channel, Handler, open_channel
from architect.runtime.tls import client_context, san_name
from architect.version import VERSION
from architect.wire.agent_messages import AgentMessage, Hello, HostFacts, HostReport, Welcome
from architect.wire.framing import PROTOCOL_VERSION

HELLO_TIMEOUT_S = 5.0
BURST_S = 0.02
REPORT_GAP_S = 0.1

Dial = Callable[[Handler], Awaitable[Channel]]
"""Opens a channel to the control plane whose requests the handler serves."""


class ControlLink:
    """Keeps one agent in touch with the control plane.

    :param dial: opens a channel; it raises UnavailableError if it cannot.
    :param facts: what this host is.
    :param report: makes the report of this moment.
    :param handler: serves the control plane's requests.
    """

    def __init__(self, dial: Dial, facts: HostFacts, report: Callable[[], HostReport], handler: Handler) -> None:
        self._dial = dial
        self._facts = facts
        self._report = report
        self._handler = handler
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """Something changed: report now rather than at the next interval."""
        self._changed.set()

    async def run(self) -> None:
        """Dial, introduce, report; for ever."""
        await redial_forever("control plane", self._session, asyncio.sleep)

    async def _session(self) -> None:
        channel = await self._dial(self._handler)
        try:
            async with asyncio.TaskGroup() as group:
                running = group.create_task(channel.run())
                reporting = group.create_task(self._introduce_and_report(channel))
                running.add_done_callback(lambda _: reporting.cancel())
        except ExceptionGroup as errors:
            raise first_error(errors) from errors
        finally:
            channel.close()

    async def _introduce_and_report(self, channel: Channel) -> None:
        try:
            hello = Hello(PROTOCOL_VERSION, VERSION, self._facts)
            welcome = await channel.call(hello, timeout_s=HELLO_TIMEOUT_S)
            assert isinstance(welcome, Welcome)
            while True:
                self._changed.clear()
                await channel.note(self._report())
                told_at_s = asyncio.get_running_loop().time()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(welcome.report_interval_s):
                        await self._changed.wait()
                # Changes come in bursts, and many moves change something all the time; a report is the whole host.
                await asyncio.sleep(max(BURST_S, told_at_s + REPORT_GAP_S - asyncio.get_running_loop().time()))
        finally:
            channel.close()


def dial_control(config: AgentConfig) -> Dial:
    """Dials the control plane that the configuration names, by TLS."""
    tls = client_context(Path(config.tls_dir))

    async def dial(handler: Handler) -> Channel:
        address = (config.control_address, config.control_port)
        return await open_channel(address, AgentMessage, handler, "control plane", tls=tls, server_name=san_name("control"))

    return dial
