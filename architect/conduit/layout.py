"""The structs of `bpf/layout.h` for ctypes, field by field; a test compares sizes and offsets with the C side.

Addresses and ports are in network byte order: `packed_address` and `packed_port` make them, `address_text` and `port_number`
read them. These structs stay inside this package.
"""

from __future__ import annotations

import ctypes
import enum
import ipaddress
import socket
from typing import TypeAlias

from architect.errors import UsageError

LAYOUT_VERSION = 2
TUNNEL_PORT = 4790
TUNNEL_BYTES = 36
U8: TypeAlias = ctypes.c_uint8
U16: TypeAlias = ctypes.c_uint16
U32: TypeAlias = ctypes.c_uint32
U64: TypeAlias = ctypes.c_uint64


class PortState(enum.IntEnum):
    """What a host does with a VM's packets."""

    BLOCKED = 0
    LOCAL = 1
    FORWARD = 2


class NodeConfig(ctypes.Structure):
    """struct node_config."""

    _fields_ = [
        ("netns", U64),
        ("layout_version", U32),
        ("tunnel_ifindex", U32),
        ("address", U32),
        ("tunnel_payload_bytes", U32),
    ]


class VmPortEntry(ctypes.Structure):
    """struct vm_port."""

    _fields_ = [
        ("state", U32),
        ("tap_ifindex", U32),
        ("inner", U32),
        ("edge", U32),
        ("forward", U32),
        ("peer", U32),
        ("mss", U16),
        ("mac", U8 * 6),
    ]


class PortStats(ctypes.Structure):
    """struct port_stats."""

    _fields_ = [
        ("to_vm_packets", U64),
        ("to_vm_bytes", U64),
        ("from_vm_packets", U64),
        ("from_vm_bytes", U64),
        ("forwarded_packets", U64),
        ("relayed_packets", U64),
        ("blocked_packets", U64),
        ("first_from_vm_ns", U64),
    ]


class EdgeVmEntry(ctypes.Structure):
    """struct edge_vm."""

    _fields_ = [("inner", U32), ("host", U32), ("previous", U32), ("vip", U32), ("is_tracked", U32)]


class ServiceKey(ctypes.Structure):
    """struct service_key."""

    _fields_ = [("vip", U32), ("port", U16), ("protocol", U8), ("pad", U8)]


class ServiceEntry(ctypes.Structure):
    """struct service."""

    _fields_ = [("vni", U32), ("port", U16), ("pad", U16)]


class ReverseKey(ctypes.Structure):
    """struct reverse_key."""

    _fields_ = [("vni", U32), ("port", U16), ("protocol", U8), ("pad", U8)]


class FlowOutKey(ctypes.Structure):
    """struct flow_out_key."""

    _fields_ = [("vni", U32), ("remote", U32), ("port", U16), ("remote_port", U16), ("protocol", U8), ("pad", U8 * 3)]


class FlowInKey(ctypes.Structure):
    """struct flow_in_key."""

    _fields_ = [("vip", U32), ("remote", U32), ("port", U16), ("remote_port", U16), ("protocol", U8), ("pad", U8 * 3)]


class FlowOut(ctypes.Structure):
    """struct flow_out."""

    _fields_ = [("seen_ns", U64), ("vip", U32), ("port", U16), ("bits", U16)]


class FlowIn(ctypes.Structure):
    """struct flow_in."""

    _fields_ = [("seen_ns", U64), ("vni", U32), ("port", U16), ("bits", U16)]


class SessionKey(ctypes.Structure):
    """struct session_key."""

    _fields_ = [("vni", U32), ("remote", U32), ("port", U16), ("remote_port", U16)]


class FragmentKey(ctypes.Structure):
    """struct fragment_key."""

    _fields_ = [("source", U32), ("target", U32), ("id", U16), ("protocol", U8), ("pad", U8)]


class FragmentPorts(ctypes.Structure):
    """struct fragment_ports."""

    _fields_ = [("source", U16), ("target", U16)]


FLOW_ANSWERED = 1
FLOW_FIN = 2
FLOW_RESET = 4

STRUCTS: dict[str, type[ctypes.Structure]] = {
    "node_config": NodeConfig,
    "vm_port": VmPortEntry,
    "port_stats": PortStats,
    "edge_vm": EdgeVmEntry,
    "service_key": ServiceKey,
    "service": ServiceEntry,
    "reverse_key": ReverseKey,
    "flow_out_key": FlowOutKey,
    "flow_in_key": FlowInKey,
    "flow_out": FlowOut,
    "flow_in": FlowIn,
    "session_key": SessionKey,
    "fragment_key": FragmentKey,
    "fragment_ports": FragmentPorts,
}

COUNTERS = (
    "to_vm",
    "from_vm",
    "hairpin",
    "forwarded",
    "drop_unknown_vm",
    "drop_wrong_source",
    "drop_wrong_address",
    "drop_not_ipv4",
    "drop_fragment",
    "drop_protocol",
    "drop_blocked",
    "drop_no_host",
    "drop_no_service",
    "drop_no_flow",
    "drop_no_public_port",
    "drop_flows_full",
    "drop_no_route",
    "drop_too_big",
    "drop_error",
    "reset_sent",
    "packet_too_big_sent",
)
"""Names of `enum counter`, in its order."""


def packed_address(text: str) -> int:
    """An IPv4 address as a map holds it; "" is none (0).

    Raises:
        UsageError: it is no IPv4 address.
    """
    if not text:
        return 0
    try:
        return int.from_bytes(ipaddress.IPv4Address(text).packed, "little" if socket.htons(1) != 1 else "big")
    except ValueError as error:
        raise UsageError(f"address {text!r}", "not an IPv4 address", "write for example 10.0.0.1") from error


def address_text(packed: int) -> str:
    """An address from a map; "" for none (0)."""
    return str(ipaddress.IPv4Address(socket.ntohl(packed))) if packed else ""


def packed_port(number: int) -> int:
    """A port as a map holds it."""
    return socket.htons(number)


def port_number(packed: int) -> int:
    """A port from a map."""
    return socket.ntohs(packed)
