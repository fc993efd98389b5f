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
    FreshKey,
)

TCP, UDP = 6, 17


class FlowTimeouts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """After how many seconds of silence a flow is over."""

    tcp_s: float = 86400.0
    tcp_closing_s: float = 120.0
    udp_s: float = 180.0
    icmp_s: float = 30.0


class FlowMaps:
    """The maps of flows; owns their descriptors."""

    def __init__(
        self,
        outgoing: BpfMap[FlowOutKey, FlowOut],
        incoming: BpfMap[FlowInKey, FlowIn],
        counts: BpfMap[U32, U32],
        fresh: BpfMap[FreshKey, U64],
    ) -> None:
        self.outgoing = outgoing
        self.incoming = incoming
        self.counts = counts
        self.fresh = fresh

    def close(self) -> None:
        """Close the descriptors. Idempotent."""
        for opened in (self.outgoing, self.incoming, self.counts, self.fresh):
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
    for fresh_key, seen in maps.fresh.entries():
        if (now - seen.value) / 1e9 > timeouts.tcp_s:
            maps.fresh.delete(fresh_key)
    return forgotten


def forget_flows(maps: FlowMaps, vni: int) -> int:
    """Forget all flows of a VM; how many it had opened.

    Raises:
        BpfError: the kernel refuses.
    """
    forgotten = 0
    for key, incoming in maps.incoming.entries():
        if incoming.vni == vni:
            maps.outgoing.delete(_out_key(key, incoming))
            maps.incoming.delete(key)
            forgotten += 1
    for fresh_key, _seen in maps.fresh.entries():
        if fresh_key.vni == vni:
            maps.fresh.delete(fresh_key)
    maps.counts.delete(U32(vni))
    return forgotten


def _out_key(key: FlowInKey, incoming: FlowIn) -> FlowOutKey:
    return FlowOutKey(incoming.vni, key.remote, incoming.port, key.remote_port, key.protocol)
