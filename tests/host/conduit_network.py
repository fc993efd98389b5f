"""A small internet in network namespaces for the tests of conduit: a client, a router, an edge and two hosts on one underlay, and
"VMs" that are namespaces whose network card is carried by `frame_pump` (in C), which stands in for QEMU.

    client 198.51.100.2 -- router -- underlay 192.0.2.0/24 (MTU 1500): edge .10 (public 203.0.113.10), hosts .21 and .22
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from architect.conduit.edge_datapath import EdgeDatapath, EdgeRoute
from architect.conduit.host_datapath import HostDatapath, VmPort, cleanup
from architect.conduit.tap import Tap, open_tap
from architect.model.endpoints import Endpoint
from architect.runtime.namespaces import create_namespace, delete_namespace, run_in_namespace

EDGE, PUBLIC, CLIENT = "192.0.2.10", "203.0.113.10", "198.51.100.2"
HOSTS = {"a": "192.0.2.21", "b": "192.0.2.22"}
MTU = 1320
ResultT = TypeVar("ResultT")


class Network:
    """The namespaces, and ways into them."""

    def __init__(self, scratch: Path) -> None:
        self.tag = f"cd{os.getpid()}"
        self.fabric = f"test-{os.getpid()}"
        self.scratch = scratch
        self.names = [f"{self.tag}-{role}" for role in ("client", "router", "edge", "a", "b")]
        self.pump = scratch / "frame_pump"
        subprocess.run(
            ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", self.pump, Path(__file__).parent / "frame_pump.c"], check=True
        )

    def path(self, role: str) -> Path:
        """The namespace file of a role."""
        return Path("/run/netns") / f"{self.tag}-{role}"

    def inside(self, role: str, function: Callable[[], ResultT]) -> ResultT:
        """What `function` returns in that namespace."""
        return run_in_namespace(self.path(role), function)

    def ip(self, role: str, arguments: str) -> None:
        """Run `ip` there."""
        subprocess.run(["ip", "-n", f"{self.tag}-{role}", *arguments.split()], check=True)

    def command(self, role: str, *arguments: str) -> list[str]:
        """A command line that runs there."""
        return ["nsenter", f"--net={self.path(role)}", *arguments]

    def build(self) -> None:
        """Make namespaces, links and addresses."""
        for name in self.names:
            create_namespace(name)
        # An address of its own: otherwise it has a port's, and changes (and loses a packet) when that host goes.
        self.ip("router", "link add name underlay address 02:bb:00:00:00:01 type bridge")
        self.ip("router", "addr add 192.0.2.1/24 dev underlay")
        self.ip("router", "link set underlay up")
        self.inside("router", lambda: Path("/proc/sys/net/ipv4/ip_forward").write_text("1"))
        self._wire("client", f"{CLIENT}/24", "198.51.100.1")
        self.ip("router", "addr add 198.51.100.1/24 dev port-client")
        for role, address in (("edge", EDGE), *HOSTS.items()):
            self._wire(role, f"{address}/24", "192.0.2.1")
            self.ip("router", f"link set port-{role} master underlay")
        self.ip("router", f"route add {PUBLIC}/32 dev underlay")

    def _wire(self, role: str, address: str, gateway: str) -> None:
        self.ip("router", f"link add name port-{role} type veth peer name eth0 netns {self.tag}-{role}")
        self.ip("router", f"link set port-{role} up")
        self.ip(role, "link set lo up")
        self.ip(role, f"addr add {address} dev eth0")
        self.ip(role, "link set eth0 up")
        self.ip(role, f"route add default via {gateway}")

    def remove(self) -> None:
        """Remove all."""
        for role in ("edge", "a", "b"):
            if self.path(role).exists():
                self.inside(role, lambda: cleanup(self.fabric))
        cleanup_names = [path.name for path in Path("/run/netns").glob(f"{self.tag}-*")]
        for name in cleanup_names:
            delete_namespace(name)

    def host(self, role: str) -> HostDatapath:
        """The attached datapath of a host."""
        datapath = HostDatapath(self.fabric, role, "eth0", HOSTS[role])
        self.inside(role, datapath.attach)
        return datapath

    def edge(self) -> EdgeDatapath:
        """The attached datapath of the edge."""
        datapath = EdgeDatapath(self.fabric, "edge", "eth0", EDGE, (PUBLIC,), 7000)
        self.inside("edge", datapath.attach)
        return datapath

    def open_socket(self, role: str, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
        """A socket that was made there, with a deadline of 10 s."""
        made = self.inside(role, lambda: socket.socket(socket.AF_INET, kind))
        made.settimeout(10)
        return made

    def listener(self, role: str, port: int) -> socket.socket:
        """A TCP listener on all addresses there."""
        listening = self.open_socket(role)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("0.0.0.0", port))
        listening.listen(64)
        return listening


def port_of(vni: int) -> VmPort:
    """The port of test VM number `vni`."""
    return VmPort(vni, f"10.88.0.{vni}", f"02:aa:00:00:00:{vni:02x}", MTU, EDGE)


def route_of(vni: int, host: str, *endpoints: Endpoint, previous: str = "", is_tracked: bool = False) -> EdgeRoute:
    """What the edge knows of test VM number `vni`."""
    return EdgeRoute(vni, f"10.88.0.{vni}", HOSTS.get(host, ""), HOSTS.get(previous, ""), PUBLIC, is_tracked, endpoints)


class Guest:
    """A "VM": a namespace with one card, whose frames a pump carries to and from the tap of the host where it is."""

    def __init__(self, network: Network, vni: int) -> None:
        self.network = network
        self.vni = vni
        self.role = f"vm{vni}"
        self.pump: subprocess.Popen[bytes] | None = None
        create_namespace(f"{network.tag}-{self.role}")
        port = port_of(vni)
        self.card: Tap = network.inside(self.role, lambda: open_tap("eth0"))
        set_offloads(self.card)
        network.ip(self.role, "link set lo up")
        network.ip(self.role, f"link set eth0 address {port.mac} mtu {MTU} txqueuelen 10000")
        network.ip(self.role, f"addr add {port.inner_address}/32 dev eth0")
        network.inside(self.role, lambda: Path("/proc/sys/net/ipv6/conf/eth0/disable_ipv6").write_text("1"))
        network.ip(self.role, "link set eth0 up")
        network.ip(self.role, "route add 169.254.1.1 dev eth0 scope link")
        network.ip(self.role, "route add default via 169.254.1.1")
        network.ip(self.role, "neigh add 169.254.1.1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent")

    def run_on(self, tap: Tap) -> None:
        """Let the VM run with this tap."""
        command = [str(self.network.pump), str(tap.fd), str(self.card.fd)]
        keep = (tap.fd, self.card.fd)
        # In the guest's namespace, whatever the caller's is: a host's has to go when its name does.
        self.pump = self.network.inside(
            self.role,
            lambda: subprocess.Popen(command, pass_fds=keep, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0),
        )
        set_offloads(tap)
        self._order(b"r")

    def pause(self) -> None:
        """Stop the VM: from the return on it reads and sends nothing."""
        self._order(b"p")

    def resume(self) -> None:
        """Go on."""
        self._order(b"r")

    def _order(self, command: bytes) -> None:
        assert self.pump is not None and self.pump.stdin is not None and self.pump.stdout is not None
        self.pump.stdin.write(command)
        assert self.pump.stdout.read(1) == command

    def kill(self) -> None:
        """End the pump, as if QEMU had died."""
        if self.pump is not None:
            self.pump.kill()
            self.pump.communicate()
            self.pump = None

    def close(self) -> None:
        """End the VM."""
        self.kill()
        self.card.close()
        delete_namespace(f"{self.network.tag}-{self.role}")


def set_offloads(tap: Tap) -> None:
    """What QEMU does for a guest with checksum and segmentation offload: TUNSETOFFLOAD(CSUM | TSO4 | TSO6 | TSO_ECN)."""
    fcntl.ioctl(tap.fd, 0x400454D0, 0x0F)


@contextlib.contextmanager
def small_internet(scratch: Path) -> Iterator[Network]:
    """The network for the length of a `with` block."""
    network = Network(scratch)
    try:
        network.build()
        yield network
    finally:
        network.remove()


def missing_capability() -> str:
    """Why these tests cannot run here; "" if they can."""
    if os.geteuid() != 0:
        return "not root"
    for tool in ("gcc", "ip", "nsenter"):
        if shutil.which(tool) is None:
            return f"no {tool}"
    return "" if Path("/dev/net/tun").exists() else "no /dev/net/tun"
