"""The desk where agents check in: takes their connections, checks who they are, and hands them to the fleet.

A connection must say Hello within `HELLO_TIMEOUT_S`; its version must be ours, and the common name of its certificate must be
`agent:NAME` with the name that it says. Only then are reports taken, and only about that host.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from typing import Any

import msgspec

from architect.control.book import Book
from architect.control.fleet import Fleet
from architect.control.records import EventKind, HostRecord
from architect.errors import ArchitectError, IncompatibleError, PeerError, UnavailableError
from architect.model.ids import HostName, check_name
from architect.runtime.rpc import WRITE_BUFFER_BYTES_MAX, Call, Channel, peer_name
from architect.version import VERSION
from architect.wire.agent_messages import AgentMessage, Hello, HostFacts, HostReport, Welcome
from architect.wire.framing import PROTOCOL_VERSION

HELLO_TIMEOUT_S = 5.0
CONNECTIONS_MAX = 4096

_log = logging.getLogger(__name__)


class AgentDesk:
    """Serves agents' connections.

    :param fabric: the fabric's name, told in Welcome.
    """

    def __init__(self, book: Book, fleet: Fleet, fabric: str, report_interval_s: float) -> None:
        self._book = book
        self._fleet = fleet
        self._welcome = Welcome(fabric, report_interval_s)
        self._connection_count = 0

    async def listen(self, address: str, port: int, tls: ssl.SSLContext) -> None:
        """Take connections for ever.

        Raises:
            UnavailableError: the address cannot be listened at.
        """
        try:
            server = await asyncio.start_server(self._accept, address, port, ssl=tls, limit=WRITE_BUFFER_BYTES_MAX)
        except OSError as error:
            raise UnavailableError(
                f"address {address}:{port}", str(error), "free the port, or stop the other control plane"
            ) from error
        async with server:
            await server.serve_forever()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self.serve(reader, writer, peer_name(writer))
        except ArchitectError as error:
            _log.warning("an agent's connection ended: %s", error)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, common_name: str) -> None:
        """Serve one connection until it ends.

        Raises:
            PeerError: the peer broke the protocol.
        """
        if self._connection_count >= CONNECTIONS_MAX:
            writer.close()
            return
        self._connection_count += 1
        visit = _Visit(self._book, self._fleet, self._welcome, common_name)
        channel = Channel(reader, writer, AgentMessage, visit.handle, common_name or "an agent")
        visit.channel = channel
        guard = asyncio.get_running_loop().call_later(HELLO_TIMEOUT_S, visit.close_if_nameless)
        try:
            await channel.run()
        finally:
            self._connection_count -= 1
            guard.cancel()
            if visit.host is not None:
                self._fleet.leave(visit.host, channel)


class _Visit:
    """One connection's state: nameless until its Hello was accepted."""

    channel: Channel

    def __init__(self, book: Book, fleet: Fleet, welcome: Welcome, common_name: str) -> None:
        self._book = book
        self._fleet = fleet
        self._welcome = welcome
        self._common_name = common_name
        self.host: HostName | None = None

    def close_if_nameless(self) -> None:
        if self.host is None:
            self.channel.close()

    async def handle(self, message: Any, _body: bytes, call: Call | None) -> Any:
        match message:
            case Hello() if call is not None:
                return await self._hello(message)
            case HostReport() if call is None and self.host is not None and message.host == self.host:
                return self._fleet.hear(message)
            case _:
                self.channel.close()
                raise PeerError(self._common_name, f"sent {type(message).__name__} out of turn", "say Hello first")

    async def _hello(self, hello: Hello) -> Welcome:
        name = hello.host.name
        if hello.version != PROTOCOL_VERSION:
            raise IncompatibleError(
                f"agent {name}",
                f"speaks protocol {hello.version}, this is {PROTOCOL_VERSION}",
                f"install Architect {VERSION} there",
            )
        check_name(name, "host")
        if self._common_name != f"agent:{name}":
            raise PeerError(f"agent {name}", f"its certificate is for {self._common_name!r}", "give it its own certificate")
        await remember_host(self._book, hello.host)
        self.host = name
        self._fleet.join(name, self.channel)
        return self._welcome


async def remember_host(book: Book, facts: HostFacts) -> None:
    """Write down that the host exists and what it is."""
    async with book.change() as change:
        known = book.hosts.get(facts.name)
        if known is None:
            change.put(HostRecord(facts))
            change.say(EventKind.HOST_JOINED, f"{facts.provider} {facts.region}", host=facts.name)
        elif known.facts != facts:
            change.put(msgspec.structs.replace(known, facts=facts))
            change.say(EventKind.HOST_BACK, "with new facts", host=facts.name)
