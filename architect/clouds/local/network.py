"""The local fabric's network: an "internet" router in a namespace of its own, and a veth from it to each member.

Members are the hosts, the edge, and the machine (the namespace that we run in). Between them is real L3: nobody shares a subnet.
Of the machine only one link of ours and one route are touched. All functions block for some milliseconds, run as root, and may be
repeated: what is there stays, what is half there is made anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network
from pathlib import Path
from socket import AF_INET
from threading import get_native_id
from typing import Any, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from architect.clouds.local.layout import METADATA_ADDRESS, UNDERLAY_MTU, FabricLayout, Link, free_index, namespace_prefix
from architect.errors import HostError
from architect.runtime.namespaces import (
    create_namespace,
    delete_namespace,
    identify_namespace,
    namespace_names,
    namespace_path,
    run_in_namespace,
    run_in_thread,
)

INDEX_LOCK = Path("/run/architect-fabrics.lock")
ResultT = TypeVar("ResultT")


def ensure_internet(layout: FabricLayout) -> None:
    """Make the router and the machine's link to it."""
    create_namespace(layout.internet_namespace)
    _netlink(layout.internet_namespace, _prepare_member)
    _ensure_link(layout, layout.machine_link, None)
    name, network = layout.machine_link.inner_name, str(layout.network)

    def route_fabric(ip: IPRoute) -> None:
        _set_up(ip, name)
        ip.route("replace", dst=network, gateway=str(layout.machine_link.router_address), oif=_index(ip, name))

    _netlink(None, route_fabric)


def ensure_edge(layout: FabricLayout) -> None:
    """Make the edge's namespace; its public addresses are routed to it and are its own (so that ports nobody has are refused)."""
    create_namespace(layout.edge_namespace)
    _ensure_member(layout, layout.edge_namespace, layout.edge_link)

    def own_public(ip: IPRoute) -> None:
        index = _index(ip, layout.edge_link.inner_name)
        for address in layout.public_addresses:
            ip.addr("replace", index=index, address=address, prefixlen=32)

    def route_public(ip: IPRoute) -> None:
        ip.route("replace", dst=str(layout.public_network), gateway=str(layout.edge_link.inner_address))

    _netlink(layout.edge_namespace, own_public)
    _netlink(layout.internet_namespace, route_public)


def ensure_host(layout: FabricLayout, host: str, slot: int) -> None:
    """Make a host's namespace, with the address that its metadata server answers at."""
    name = layout.host_namespace(host)
    create_namespace(name)
    _ensure_member(layout, name, layout.host_link(slot))

    def own_metadata(ip: IPRoute) -> None:
        ip.addr("replace", index=_index(ip, "lo"), address=METADATA_ADDRESS, prefixlen=32)

    _netlink(name, own_metadata)


def unplug_host(layout: FabricLayout, slot: int) -> None:
    """Take a host's cable away, at once; nothing inside it can say goodbye. Idempotent."""
    if identify_namespace(namespace_path(layout.internet_namespace)) is not None:
        _netlink(layout.internet_namespace, lambda ip: _delete(ip, layout.host_link(slot).router_name))


def remove_namespace(name: str) -> None:
    """Delete a namespace and every link in it; its processes and sockets must be gone. Idempotent."""
    if identify_namespace(namespace_path(name)) is not None:
        _netlink(name, _delete_all)
    delete_namespace(name)


def remove_network(fabric: str) -> None:
    """Delete all namespaces and links of a fabric, whatever its index was. Idempotent."""
    for name in namespace_names(namespace_prefix(fabric)):
        remove_namespace(name)
    _netlink(None, lambda ip: _delete(ip, f"arc{fabric}m"))


@contextlib.contextmanager
def claim_index(fabric: str) -> Iterator[int]:
    """The index for a new fabric, reserved until the block ends; by then its routes must exist, for they are the claim."""
    descriptor = os.open(INDEX_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        _netlink(None, lambda ip: _delete(ip, f"arc{fabric}m"))
        yield free_index(_netlink(None, _networks))
    finally:
        os.close(descriptor)


def _networks(ip: IPRoute) -> list[IPv4Network]:
    routes = ((route.get_attr("RTA_DST"), route["dst_len"]) for route in ip.get_routes(family=AF_INET))
    return [IPv4Network((destination, length)) for destination, length in routes if destination is not None and length > 0]


def _ensure_member(layout: FabricLayout, namespace: str, link: Link) -> None:
    _netlink(namespace, _prepare_member)
    _ensure_link(layout, link, namespace)

    def route_out(ip: IPRoute) -> None:
        _set_up(ip, link.inner_name)
        ip.route("replace", dst="0.0.0.0/0", gateway=str(link.router_address), oif=_index(ip, link.inner_name))

    _netlink(namespace, route_out)


def _prepare_member(ip: IPRoute) -> None:
    """Sysctls are those of the namespace that the calling thread is in. Links take `default` when they appear."""
    ip.link("set", index=_index(ip, "lo"), state="up")
    for scope in ("all", "default"):
        _sysctl(f"ipv6/conf/{scope}/disable_ipv6", "1")
        _sysctl(f"ipv4/conf/{scope}/rp_filter", "0")
    _sysctl("ipv4/ip_forward", "1")


def _ensure_link(layout: FabricLayout, link: Link, namespace: str | None) -> None:
    """A veth with an address at both ends. If either end is missing, both are made anew."""
    has_inner = _netlink(namespace, lambda ip: bool(ip.link_lookup(ifname=link.inner_name)))
    has_router = _netlink(layout.internet_namespace, lambda ip: bool(ip.link_lookup(ifname=link.router_name)))
    if not (has_inner and has_router):
        _netlink(namespace, lambda ip: _delete(ip, link.inner_name))
        _netlink(layout.internet_namespace, lambda ip: _delete(ip, link.router_name))
        _add_veth(layout, link, namespace)

    def address_inner(ip: IPRoute) -> None:
        if namespace is None:
            _sysctl(f"ipv6/conf/{link.inner_name}/disable_ipv6", "1")
            _sysctl(f"ipv4/conf/{link.inner_name}/rp_filter", "0")
        ip.addr("replace", index=_index(ip, link.inner_name), address=str(link.inner_address), prefixlen=link.prefix)
        _set_up(ip, link.inner_name)

    def address_router(ip: IPRoute) -> None:
        ip.addr("replace", index=_index(ip, link.router_name), address=str(link.router_address), prefixlen=link.prefix)
        _set_up(ip, link.router_name)

    _netlink(namespace, address_inner)
    _netlink(layout.internet_namespace, address_router)


def _add_veth(layout: FabricLayout, link: Link, namespace: str | None) -> None:
    inner = Path(f"/proc/self/task/{get_native_id()}/ns/net") if namespace is None else namespace_path(namespace)
    descriptor = os.open(inner, os.O_RDONLY | os.O_CLOEXEC)
    try:
        peer = {"ifname": link.inner_name, "net_ns_fd": descriptor, "mtu": UNDERLAY_MTU}
        _netlink(
            layout.internet_namespace,
            lambda ip: ip.link("add", ifname=link.router_name, kind="veth", mtu=UNDERLAY_MTU, peer=peer),
        )
    finally:
        os.close(descriptor)


def _netlink(namespace: str | None, function: Callable[[IPRoute], ResultT]) -> ResultT:
    def talk() -> ResultT:
        with IPRoute() as ip:
            return function(ip)

    try:
        # A thread in both cases: pyroute2 runs an event loop of its own, which a thread with a running loop would refuse.
        return run_in_thread(talk) if namespace is None else run_in_namespace(namespace_path(namespace), talk)
    except NetlinkError as error:
        where = namespace or "the machine's network"
        raise HostError(f"network {where}", str(error), "run `architect down`, then `architect up`, as root") from error


def _index(ip: IPRoute, name: str) -> Any:
    found = ip.link_lookup(ifname=name)
    if not found:
        raise HostError(f"link {name}", "it has vanished", "run `architect up` again; it repairs links")
    return found[0]


def _set_up(ip: IPRoute, name: str) -> None:
    ip.link("set", index=_index(ip, name), state="up")


def _delete(ip: IPRoute, name: str) -> None:
    for index in ip.link_lookup(ifname=name):
        with contextlib.suppress(NetlinkError):  # the peer's end went at the same moment
            ip.link("del", index=index)


def _delete_all(ip: IPRoute) -> None:
    names = [link.get_attr("IFLA_IFNAME") for link in ip.get_links()]
    for name in names:
        if name != "lo":
            _delete(ip, name)


def _sysctl(name: str, value: str) -> None:
    path = Path("/proc/sys/net") / name
    if path.exists():  # a kernel without IPv6 has nothing to turn off
        path.write_text(value)
