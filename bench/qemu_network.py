"""The network of the QEMUs that are compared with: taps on a bridge, where the client outside is the bridge's own address.

As on a host of libvirt, but in a network namespace of the benchmark's own. The client need not ask for the guest's MAC address: it
has a permanent neighbour entry, and the guest one of the bridge.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from pyroute2 import IPRoute

from architect.conduit.links import set_up_tap, silence_ipv6
from architect.conduit.tap import Tap, open_tap
from architect.model.vm_spec import DEFAULT_MTU
from architect.runtime.namespaces import run_in_thread

BRIDGE = "bench0"
BRIDGE_ADDRESS = "10.97.0.1"
BRIDGE_MAC = "02:00:97:00:00:01"
GUEST_ADDRESS = "10.97.0.2"
GUEST_MAC = "02:00:97:00:00:02"
TAP_QUEUE_FRAMES = 1000


@contextlib.contextmanager
def bridge() -> Iterator[None]:
    """The bridge for the length of a block, in this thread's network namespace."""
    run_in_thread(_make_bridge)
    try:
        yield
    finally:
        run_in_thread(_remove_bridge)


@contextlib.contextmanager
def bridged_tap(name: str) -> Iterator[Tap]:
    """A tap on the bridge; it goes when it is closed and its QEMU has ended."""
    tap = open_tap(name)
    try:
        index = set_up_tap(name, DEFAULT_MTU, TAP_QUEUE_FRAMES)
        run_in_thread(lambda: _enslave(index))
        yield tap
    finally:
        tap.close()


def _make_bridge() -> None:
    with IPRoute() as ip:
        ip.link("add", ifname=BRIDGE, kind="bridge", address=BRIDGE_MAC, br_stp_state=0, br_forward_delay=0)
        index = _index(ip)
        silence_ipv6(BRIDGE)
        ip.link("set", index=index, mtu=DEFAULT_MTU)
        ip.addr("add", index=index, address=BRIDGE_ADDRESS, prefixlen=24)
        ip.link("set", index=index, state="up")
        ip.neigh("replace", dst=GUEST_ADDRESS, lladdr=GUEST_MAC, ifindex=index, state="permanent")


def _remove_bridge() -> None:
    with IPRoute() as ip:
        ip.link("del", index=_index(ip))


def _enslave(tap: int) -> None:
    with IPRoute() as ip:
        ip.link("set", index=tap, master=_index(ip))


def _index(ip: Any) -> int:
    return int(ip.link_lookup(ifname=BRIDGE)[0])


def loopback_up() -> None:
    """Switch on the loopback of this thread's network namespace; blocks, not in a thread that runs asyncio."""
    with IPRoute() as ip:
        ip.link("set", index=1, state="up")
