"""The datapath of hosts and edge, without a move: what passes, what does not, and how."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from architect.conduit.edge_datapath import EdgeDatapath, EdgeRoute
from architect.conduit.host_datapath import HostDatapath
from architect.conduit.layout import PortState
from architect.model.endpoints import Endpoint, Protocol
from tests.host.conduit_network import CLIENT, HOSTS, PUBLIC, Guest, Network, missing_capability, port_of, route_of, small_internet

pytestmark = [pytest.mark.host, pytest.mark.skipif(bool(missing_capability()), reason=missing_capability())]

WEB = Endpoint(PUBLIC, 8080, Protocol.TCP, 80)
DNS = Endpoint(PUBLIC, 5353, Protocol.UDP, 53)


class Rig:
    """One VM on host a, another on host b, both behind the edge."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.edge: EdgeDatapath = network.edge()
        self.hosts: dict[str, HostDatapath] = {role: network.host(role) for role in HOSTS}
        self.guests = [self._start(1, "a"), self._start(2, "b")]
        self.edge.apply((route_of(1, "a", WEB, DNS), route_of(2, "b")))

    def _start(self, vni: int, role: str) -> Guest:
        host = self.hosts[role]
        tap = self.network.inside(role, lambda: host.add_vm(port_of(vni), PortState.LOCAL))
        guest = Guest(self.network, vni)
        guest.run_on(tap)
        return guest

    def close(self) -> None:
        """End the VMs and give descriptors back."""
        for guest in self.guests:
            guest.close()
        for datapath in self.hosts.values():
            datapath.close()
        self.edge.close()


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """The network with two VMs."""
    with small_internet(tmp_path_factory.mktemp("conduit")) as network:
        with contextlib.closing(Rig(network)) as built:
            yield built


def transfer(sender: socket.socket, receiver: socket.socket, size_bytes: int) -> bytes:
    """Send that many bytes and return what arrived."""
    data = bytes(range(256)) * (size_bytes // 256)
    thread = threading.Thread(target=sender.sendall, args=(data,))
    thread.start()
    received = bytearray()
    while len(received) < len(data) and (part := receiver.recv(1 << 16)):
        received += part
    thread.join()
    assert bytes(received) == data
    return bytes(received)


def test_a_client_reaches_a_published_tcp_port_and_the_vm_sees_its_address(rig: Rig) -> None:
    with rig.network.listener("vm1", 80) as listener, rig.network.open_socket("client") as client:
        client.connect((PUBLIC, 8080))
        served, peer = listener.accept()
        with served:
            assert peer == (CLIENT, client.getsockname()[1])
            transfer(client, served, 1 << 22)
            transfer(served, client, 1 << 22)


def test_a_client_reaches_a_published_udp_port(rig: Rig) -> None:
    with (
        rig.network.open_socket("vm1", socket.SOCK_DGRAM) as server,
        rig.network.open_socket("client", socket.SOCK_DGRAM) as client,
    ):
        server.bind(("0.0.0.0", 53))
        client.sendto(b"question", (PUBLIC, 5353))
        data, peer = server.recvfrom(100)
        assert (data, peer) == (b"question", (CLIENT, client.getsockname()[1]))
        server.sendto(b"answer", peer)
        assert client.recvfrom(100) == (b"answer", (PUBLIC, 5353))


def test_a_vm_reaches_the_outside_by_tcp_from_the_public_address(rig: Rig) -> None:
    with rig.network.listener("client", 9000) as listener, rig.network.open_socket("vm1") as inner:
        inner.connect((CLIENT, 9000))
        served, peer = listener.accept()
        with served:
            assert peer == (PUBLIC, inner.getsockname()[1])
            transfer(inner, served, 1 << 22)
            transfer(served, inner, 1 << 22)


def test_two_vms_with_the_same_source_port_get_different_public_ports(rig: Rig) -> None:
    with rig.network.open_socket("client", socket.SOCK_DGRAM) as server, contextlib.ExitStack() as stack:
        server.bind(("0.0.0.0", 9001))
        inner = [stack.enter_context(rig.network.open_socket(f"vm{vni}", socket.SOCK_DGRAM)) for vni in (1, 2)]
        peers = []
        for number, opened in enumerate(inner):
            opened.bind(("0.0.0.0", 40000))
            opened.sendto(b"%d" % number, (CLIENT, 9001))
            data, peer = server.recvfrom(100)
            assert data == b"%d" % number and peer[0] == PUBLIC
            peers.append(peer)
        assert peers[0][1] == 40000 and peers[1][1] != 40000
        for number, opened in enumerate(inner):
            server.sendto(b"back %d" % number, peers[number])
            assert opened.recvfrom(100) == (b"back %d" % number, (CLIENT, 9001))


def test_a_vm_pings_the_outside_and_a_client_pings_the_public_address(rig: Rig) -> None:
    for role, target in (("vm1", CLIENT), ("client", PUBLIC)):
        pinger = rig.network.inside(role, lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
        with pinger:
            pinger.settimeout(5)
            request = bytes.fromhex("0800e5ca12340001")  # echo, its checksum, id 0x1234, number 1
            pinger.sendto(request, (target, 0))
            answer, peer = pinger.recvfrom(100)
            assert peer[0] == target
            assert answer[20:] == bytes.fromhex("0000edca12340001")


def test_a_vm_reaches_another_vm_by_its_public_port(rig: Rig) -> None:
    with rig.network.listener("vm1", 80) as listener, rig.network.open_socket("vm2") as inner:
        inner.connect((PUBLIC, 8080))
        served, peer = listener.accept()
        with served:
            assert peer[0] == PUBLIC
            transfer(inner, served, 1 << 20)
            transfer(served, inner, 1 << 20)


def test_a_port_that_nobody_published_is_refused(rig: Rig) -> None:
    with rig.network.open_socket("client") as client:
        with pytest.raises(ConnectionRefusedError):
            client.connect((PUBLIC, 8081))


@pytest.mark.parametrize("size_bytes", [1320 - 28, 1464 - 28])
def test_a_packet_of_the_largest_size_passes(rig: Rig, size_bytes: int) -> None:
    with (
        rig.network.open_socket("vm1", socket.SOCK_DGRAM) as server,
        rig.network.open_socket("client", socket.SOCK_DGRAM) as client,
    ):
        server.bind(("0.0.0.0", 53))
        client.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER = IP_PMTUDISC_DO: do not fragment
        client.sendto(bytes(size_bytes), (PUBLIC, 5353))
        data, peer = server.recvfrom(2000)
        assert len(data) == size_bytes
        server.sendto(bytes(1320 - 28), peer)
        assert len(client.recv(2000)) == 1320 - 28


def test_a_client_with_too_large_a_packet_is_told_the_size(rig: Rig) -> None:
    with rig.network.open_socket("client", socket.SOCK_DGRAM) as client:
        client.setsockopt(socket.IPPROTO_IP, 10, 2)
        client.connect((PUBLIC, 5353))
        client.send(bytes(1465 - 28))
        deadline_s = time.monotonic() + 5
        while client.getsockopt(socket.IPPROTO_IP, 14) != 1464:  # IP_MTU
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
    rig.network.ip("client", "route flush cache")


def test_both_sides_of_a_tcp_connection_learn_the_vms_segment_size(rig: Rig) -> None:
    def segment_bytes(connected: socket.socket) -> int:
        return connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)

    with rig.network.listener("vm1", 80) as listener, rig.network.open_socket("client") as client:
        client.connect((PUBLIC, 8080))
        served, _peer = listener.accept()
        with served:
            assert segment_bytes(client) <= 1280 and segment_bytes(served) <= 1280


def forge(network: Network, role: str, vni: int, inner_source: str, payload: bytes = b"forged") -> None:
    """Send a UDP packet to the client through the tunnel to the edge, as any machine of the underlay could."""
    inner = bytearray(20)
    inner[0], inner[8], inner[9] = 0x45, 64, 17
    inner[2:4] = (28 + len(payload)).to_bytes(2, "big")
    inner[12:16], inner[16:20] = socket.inet_aton(inner_source), socket.inet_aton(CLIENT)
    checksum = sum(int.from_bytes(inner[i : i + 2], "big") for i in range(0, 20, 2))
    while checksum >> 16:
        checksum = (checksum & 0xFFFF) + (checksum >> 16)
    inner[10:12] = (~checksum & 0xFFFF).to_bytes(2, "big")
    udp = (1234).to_bytes(2, "big") + (9002).to_bytes(2, "big") + (8 + len(payload)).to_bytes(2, "big") + bytes(2)
    header = bytes([0x0C, 0, 0, 1]) + vni.to_bytes(3, "big") + b"\0"
    with network.open_socket(role, socket.SOCK_DGRAM) as sender:
        sender.sendto(header + bytes(inner) + udp + payload, ("192.0.2.10", 4790))


def test_forged_tunnel_packets_are_dropped_and_counted(rig: Rig) -> None:
    with rig.network.open_socket("client", socket.SOCK_DGRAM) as server:
        server.bind(("0.0.0.0", 9002))
        before = rig.edge.counters()
        forge(rig.network, "b", 1, "10.88.0.1")  # VM 1 is on host a
        forge(rig.network, "a", 1, "10.88.0.2")  # VM 1 is not 10.88.0.2
        forge(rig.network, "a", 99, "10.88.0.1")  # there is no VM 99
        expected = {name: before[name] + 1 for name in ("drop_wrong_source", "drop_wrong_address", "drop_unknown_vm")}
        deadline_s = time.monotonic() + 10
        while (counted := {name: rig.edge.counters()[name] for name in expected}) != expected:
            assert time.monotonic() < deadline_s, counted
            time.sleep(0.01)
        forge(rig.network, "a", 1, "10.88.0.1", b"genuine")
        assert server.recvfrom(100)[0] == b"genuine", "and nothing before it"


def test_tcp_that_belongs_to_no_flow_is_reset_towards_the_vm(rig: Rig) -> None:
    with rig.network.listener("client", 9003) as listener, rig.network.open_socket("vm1") as inner:
        inner.connect((CLIENT, 9003))
        served, _peer = listener.accept()
        with served:
            rig.edge.forget_flows(1)
            inner.send(b"x")
            with pytest.raises(ConnectionResetError):
                inner.recv(1)


@contextlib.contextmanager
def tracked(rig: Rig) -> Iterator[EdgeRoute]:
    """VM 1 with connections from before refused."""
    route = route_of(1, "a", WEB, DNS, is_tracked=True)
    rig.edge.apply((route, route_of(2, "b")))
    try:
        yield route
    finally:
        rig.edge.apply((route_of(1, "a", WEB, DNS), route_of(2, "b")))


def test_a_reset_of_flows_ends_connections_in_which_both_ends_only_listen(rig: Rig) -> None:
    with (
        rig.network.listener("vm1", 80) as inside,
        rig.network.listener("client", 9005) as outside,
        contextlib.ExitStack() as stack,
    ):
        ends = []
        for role, target, listener in (("client", (PUBLIC, 8080), inside), ("vm1", (CLIENT, 9005), outside)):
            opened = stack.enter_context(rig.network.open_socket(role))
            opened.connect(target)
            ends += [opened, stack.enter_context(listener.accept()[0])]
        with tracked(rig) as route:
            assert rig.network.inside("edge", lambda: rig.edge.reset_flows(route)) >= 2
            for end in ends:
                with pytest.raises(ConnectionResetError):
                    end.recv(1)


def test_after_a_reset_of_flows_what_either_end_sends_is_answered_with_a_reset_and_new_connections_work(rig: Rig) -> None:
    with rig.network.listener("vm1", 80) as listener, contextlib.ExitStack() as stack:
        pairs = []
        for _ in range(2):
            client = stack.enter_context(rig.network.open_socket("client"))
            client.connect((PUBLIC, 8080))
            pairs.append((client, stack.enter_context(listener.accept()[0])))
        with tracked(rig):
            rig.edge.forget_flows(1)
            pairs[0][0].send(b"x")
            with pytest.raises(ConnectionResetError):
                pairs[0][0].recv(1)
            pairs[1][1].send(b"x")
            with pytest.raises(ConnectionResetError):
                pairs[1][1].recv(1)
            fresh = stack.enter_context(rig.network.open_socket("client"))
            fresh.connect((PUBLIC, 8080))
            served = stack.enter_context(listener.accept()[0])
            transfer(fresh, served, 1 << 18)
            transfer(served, fresh, 1 << 18)


def test_fragmented_datagrams_pass_both_ways(rig: Rig) -> None:
    with (
        rig.network.open_socket("vm1", socket.SOCK_DGRAM) as server,
        rig.network.open_socket("client", socket.SOCK_DGRAM) as client,
        rig.network.open_socket("client", socket.SOCK_DGRAM) as outside,
    ):
        for opened in (server, client, outside):
            opened.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER = IP_PMTUDISC_DONT: fragment
        # The edge cannot make a client's fragments smaller, so the client's are as large as the tunnel carries.
        rig.network.ip("client", "link set eth0 mtu 1464")
        server.bind(("0.0.0.0", 53))
        outside.bind(("0.0.0.0", 9006))
        data = bytes(range(256)) * 20
        try:
            client.sendto(data, (PUBLIC, 5353))
            received, peer = server.recvfrom(10000)
            assert received == data
            server.sendto(data, peer)
            assert client.recv(10000) == data
            server.sendto(data, (CLIENT, 9006))
            assert outside.recv(10000) == data
        finally:
            rig.network.ip("client", "link set eth0 mtu 1500")


def test_iperf3_runs_both_ways_through_edge_and_tunnel(rig: Rig) -> None:
    ports = (Endpoint(PUBLIC, 5201, Protocol.TCP, 5201), Endpoint(PUBLIC, 5201, Protocol.UDP, 5201))
    rig.edge.apply((route_of(1, "a", WEB, DNS, *ports), route_of(2, "b")))
    server = subprocess.Popen(rig.network.command("vm1", "iperf3", "-s"), stdout=subprocess.DEVNULL)
    try:
        for extra in ([], ["-R"], ["-u", "-b", "20M", "-l", "1200"]):
            command = rig.network.command("client", "iperf3", "-c", PUBLIC, "-t", "1", "-J", *extra)
            deadline_s = time.monotonic() + 10
            while (result := json.loads(subprocess.run(command, capture_output=True).stdout)).get("error"):
                assert time.monotonic() < deadline_s, result["error"]
                time.sleep(0.1)
            total = result["end"].get("sum_received") or result["end"]["sum"]
            assert total["bytes"] > 0
    finally:
        server.kill()
        server.wait()
        rig.edge.apply((route_of(1, "a", WEB, DNS), route_of(2, "b")))


def test_the_gateway_answers_arp(rig: Rig) -> None:
    rig.network.ip("vm1", "neigh del 169.254.1.1 dev eth0")
    try:
        with rig.network.listener("client", 9004), rig.network.open_socket("vm1") as inner:
            inner.connect((CLIENT, 9004))
        neighbours = subprocess.run(rig.network.command("vm1", "ip", "neigh"), check=True, capture_output=True, text=True).stdout
        assert "169.254.1.1 dev eth0 lladdr 02:00:00:00:00:01" in neighbours
    finally:
        rig.network.ip("vm1", "neigh replace 169.254.1.1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent")


def test_the_artifacts_are_built() -> None:
    for name in ("edge.bpf.o", "host.bpf.o"):
        assert (Path(__file__).parents[2] / "architect/artifacts" / name).exists()
