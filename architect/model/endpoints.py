"""Endpoints: what `--publish` asks for, and what it became at the edge."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from architect.errors import UsageError


class Protocol(StrEnum):
    """A transport that can be published."""

    TCP = "tcp"
    UDP = "udp"


class Publish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request to make `guest_port` of the VM reachable at `public_port` of the edge's public address."""

    public_port: int
    guest_port: int
    protocol: Protocol = Protocol.TCP


class Endpoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A published port as clients see it; it stays the same over moves and restores."""

    address: str
    port: int
    protocol: Protocol
    guest_port: int


def parse_publish(text: str) -> Publish:
    """`PUBLIC:GUEST[/udp|/tcp]` as a value.

    Raises:
        UsageError: it is not of that form, or a port is not in 1..65535.
    """
    ports, _, protocol = text.partition("/")
    public, colon, guest = ports.partition(":")
    numbers = [int(word) for word in (public, guest) if word.isascii() and word.isdigit() and len(word) <= 5]
    if not colon or len(numbers) != 2 or protocol not in ("", "tcp", "udp") or not all(1 <= n <= 65535 for n in numbers):
        raise UsageError(f"--publish {text}", "not PUBLIC:GUEST[/udp]", "write for example 8080:80 or 5353:53/udp")
    return Publish(numbers[0], numbers[1], Protocol(protocol or "tcp"))
