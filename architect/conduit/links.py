"""Links of this network namespace through rtnetlink: the tunnel device, taps, addresses.

pyroute2's plain API runs an event loop of its own and cannot be called from a thread that runs asyncio; each function here does its
work in a thread made for it, which is in the caller's network namespace. Blocking, a few milliseconds each.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from architect.conduit.layout import TUNNEL_BYTES, TUNNEL_PORT
from architect.errors import ConflictError, HostError
from architect.runtime.namespaces import run_in_thread

TUNNEL_NAME = "architect0"
ResultT = TypeVar("ResultT")


def link_index(name: str) -> int | None:
    """A link's ifindex, or None if there is no such link."""
    return _with_netlink(f"link {name}", lambda ip: _index(ip, name))


def link_mtu(name: str) -> int:
    """A link's MTU.

    Raises:
        HostError: there is no such link.
    """

    def read(ip: Any) -> int:
        index = _index(ip, name)
        if index is None:
            raise HostError(f"link {name}", "it does not exist", "see `ip link`; name the one that leads to the other hosts")
        mtu: int = ip.get_links(index)[0].get_attr("IFLA_MTU")
        return mtu

    return _with_netlink(f"link {name}", read)


def ensure_tunnel(owner: str, underlay_mtu: int) -> int:
    """The ifindex of the tunnel device, made if need be: VXLAN-GPE without a VNI of its own (BPF sets it per packet).

    :param owner: whose it is; a device of another owner is refused, as one namespace has one tunnel port.

    Raises:
        ConflictError: another node has its tunnel in this network namespace, or another program has the port.
        HostError: the kernel refuses (no vxlan, not root).
    """

    def ensure(ip: Any) -> int:
        index = _index(ip, TUNNEL_NAME)
        if index is not None and (other := ip.get_links(index)[0].get_attr("IFLA_IFALIAS")) != owner:
            raise ConflictError(
                f"link {TUNNEL_NAME}",
                f"it is the tunnel of {other}",
                "run one host or edge in a network namespace, or stop that one",
            )
        if index is None:
            ip.link(
                "add",
                ifname=TUNNEL_NAME,
                kind="vxlan",
                vxlan_collect_metadata=1,
                vxlan_gpe=True,
                vxlan_port=TUNNEL_PORT,
                vxlan_learning=0,
                vxlan_udp_csum=0,
            )
            index = _index(ip, TUNNEL_NAME)
            ip.link("set", index=index, ifalias=owner, mtu=underlay_mtu - TUNNEL_BYTES)
            silence_ipv6(TUNNEL_NAME)
        try:
            ip.link("set", index=index, state="up")
        except NetlinkError as error:
            if error.code not in (errno.EADDRINUSE, errno.EEXIST):
                raise
            ip.link("del", index=index)
            raise ConflictError(
                f"UDP port {TUNNEL_PORT}", "another program has it", "find it with `ss -ulpn` and stop it"
            ) from error
        assert index is not None
        return index

    return _with_netlink(f"link {TUNNEL_NAME}", ensure)


def set_up_tap(name: str, mtu: int, queue_frames: int) -> int:
    """Give a tap its MTU and queue, no qdisc of its own (only the queue holds frames, in order), no IPv6; its ifindex.

    Raises:
        HostError: the kernel refuses.
    """

    def set_up(ip: Any) -> int:
        index = _index(ip, name)
        assert index is not None, f"{name} was just made"
        silence_ipv6(name)
        ip.link("set", index=index, mtu=mtu, txqlen=queue_frames)
        ip.tc("replace", "noqueue", index, parent=0xFFFFFFFF)
        ip.link("set", index=index, state="up")
        return index

    return _with_netlink(f"tap {name}", set_up)


def delete_link(name: str) -> None:
    """Delete a link. Idempotent.

    Raises:
        HostError: the kernel refuses.
    """

    def delete(ip: Any) -> None:
        if (index := _index(ip, name)) is not None:
            with contextlib.suppress(NetlinkError):
                ip.link("del", index=index)

    _with_netlink(f"link {name}", delete)


def link_names(prefix: str) -> dict[str, int]:
    """Names (with that prefix) and ifindexes of links."""

    def read(ip: Any) -> dict[str, int]:
        named = {link.get_attr("IFLA_IFNAME"): link["index"] for link in ip.get_links()}
        return {name: index for name, index in named.items() if name.startswith(prefix)}

    return _with_netlink("links", read)


def ensure_addresses(nic: str, addresses: tuple[str, ...]) -> None:
    """Give a link these addresses (/32) unless the namespace has them already, so that the kernel answers ARP and ping for them.

    Raises:
        HostError: the link does not exist, or the kernel refuses.
    """

    def ensure(ip: Any) -> None:
        index = _index(ip, nic)
        if index is None:
            raise HostError(f"link {nic}", "it does not exist", "name the edge's public network card")
        present = {message.get_attr("IFA_LOCAL") for message in ip.get_addr(family=2)}
        for address in addresses:
            if address not in present:
                ip.addr("add", index=index, address=address, prefixlen=32)

    _with_netlink(f"link {nic}", ensure)


def silence_ipv6(name: str) -> None:
    """Keep the kernel from sending anything of its own into a link."""
    with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")


def enable_forwarding(name: str) -> None:
    """Let routes be looked up for packets that came in by this link (bpf_fib_lookup asks for it)."""
    Path(f"/proc/sys/net/ipv4/conf/{name}/forwarding").write_text("1")


def transmit_drops(name: str) -> int:
    """Packets that a link could not take (a full tap), from the calling thread's namespace; 0 if there is no such link."""
    for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
        link, colon, numbers = line.partition(":")
        if colon and link.strip() == name:
            return int(numbers.split()[11])
    return 0


def _index(ip: Any, name: str) -> int | None:
    found = ip.link_lookup(ifname=name)
    return found[0] if found else None


def _with_netlink(thing: str, work: Callable[[Any], ResultT]) -> ResultT:
    def run() -> ResultT:
        try:
            with IPRoute() as ip:
                return work(ip)
        except NetlinkError as error:
            raise HostError(
                thing, f"the kernel refused ({error})", "run as root; the kernel needs VXLAN, TUN and clsact"
            ) from error
        except OSError as error:
            raise HostError(thing, str(error), "run as root; the kernel needs VXLAN, TUN and clsact") from error

    return run_in_thread(run)
