"""Aging of flows that VMs opened: which entries of the edge's flow maps are over.

A flow is two entries, one a direction, that the programs touch with each packet; it is forgotten when *both* have been silent for
as long as its state allows (TCP in use 24 h, half-open or closing 2 min; UDP 3 min; ICMP echo 30 s). The decision is a function of
values; `age_flows` performs it. Times are CLOCK_MONOTONIC in ns, as `bpf_ktime_get_ns` reads it.
"""

from __future__ import annotations

import time
from collections import Counter

import msgspec

from architect.conduit.bpf_map import BpfMap
from architect.conduit.layout import (
    FLOW_ANSWERED,
    FLOW_FIN,
    FLOW_RESET,
    U32,
    U64,
    FlowIn,
    FlowInKey,
    FlowOut,
    FlowOutKey,
    SessionKey,
    address_text,
    port_number,
)

TCP, UDP = 6, 17


class FlowTimeouts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """After how many seconds of silence a flow is over."""

    tcp_s: float = 86400.0
    tcp_closing_s: float = 120.0
    udp_s: float = 180.0
    icmp_s: float = 30.0


class Connection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A TCP connection of a VM. `public_port` is 0 for one to a published port: there it follows from the guest's."""

    remote_address: str
    remote_port: int
    guest_port: int
    public_port: int = 0


class FlowMaps:
    """The maps of flows; owns their descriptors."""

    def __init__(
        self,
        outgoing: BpfMap[FlowOutKey, FlowOut],
        incoming: BpfMap[FlowInKey, FlowIn],
        counts: BpfMap[U32, U32],
        sessions: BpfMap[SessionKey, U64],
    ) -> None:
        self.outgoing = outgoing
        self.incoming = incoming
        self.counts = counts
        self.sessions = sessions

    def close(self) -> None:
        """Close the descriptors. Idempotent."""
        for opened in (self.outgoing, self.incoming, self.counts, self.sessions):
            opened.close()


def is_over(protocol: int, silent_s: float, out_bits: int, in_bits: int, timeouts: FlowTimeouts) -> bool:
    """Whether a flow is over: `silent_s` seconds without a packet either way, FLOW_* bits of both directions."""
    if protocol == UDP:
        return silent_s > timeouts.udp_s
    if protocol != TCP:
        return silent_s > timeouts.icmp_s
    is_closed = (out_bits & FLOW_FIN and in_bits & FLOW_FIN) or (out_bits | in_bits) & FLOW_RESET
    is_open = in_bits & FLOW_ANSWERED and not is_closed
    return silent_s > (timeouts.tcp_s if is_open else timeouts.tcp_closing_s)


def age_flows(maps: FlowMaps, timeouts: FlowTimeouts, now_ns: int | None = None) -> int:
    """Forget the flows that are over, and count anew what each VM has; how many were forgotten.

    Raises:
        BpfError: the kernel refuses.
    """
    now = time.monotonic_ns() if now_ns is None else now_ns
    alive: Counter[int] = Counter()
    forgotten = 0
    for key, incoming in maps.incoming.entries():
        out_key = _out_key(key, incoming)
        outgoing = maps.outgoing.get(out_key) or FlowOut()
        silent_s = (now - max(incoming.seen_ns, outgoing.seen_ns)) / 1e9
        if is_over(key.protocol, silent_s, outgoing.bits, incoming.bits, timeouts):
            # Outgoing first: without it the next packet opens a new flow, which must not find the old claim's port half gone.
            maps.outgoing.delete(out_key)
            maps.incoming.delete(key)
            forgotten += 1
        else:
            alive[incoming.vni] += 1
    for vni, _count in maps.counts.entries():
        maps.counts.put(vni, U32(alive[vni.value]))
    return forgotten


def forget_flows(maps: FlowMaps, vni: int) -> tuple[Connection, ...]:
    """Forget all flows of a VM; its TCP connections, as far as they are known (some may have ended long ago).

    Raises:
        BpfError: the kernel refuses.
    """
    connections = []
    for key, incoming in maps.incoming.entries():
        if incoming.vni == vni:
            maps.outgoing.delete(_out_key(key, incoming))
            maps.incoming.delete(key)
            if key.protocol == TCP:
                connections.append(
                    Connection(address_text(key.remote), *map(port_number, (key.remote_port, incoming.port, key.port)))
                )
    for session, _seen in maps.sessions.entries():
        if session.vni == vni:
            maps.sessions.delete(session)
            connections.append(Connection(address_text(session.remote), *map(port_number, (session.remote_port, session.port))))
    maps.counts.delete(U32(vni))
    return tuple(connections)


def _out_key(key: FlowInKey, incoming: FlowIn) -> FlowOutKey:
    return FlowOutKey(incoming.vni, key.remote, incoming.port, key.remote_port, key.protocol)
