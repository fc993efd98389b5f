"""A VM's open flows are switched from host to host under traffic; processes of edge and agent die meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from architect.conduit.edge_client import EdgeClient
from architect.conduit.host_datapath import HostDatapath, cleanup
from architect.conduit.layout import PortState
from architect.conduit.pins import fabric_folder
from architect.conduit.switch import SourceFlows, SteeredVm, TargetFlows
from architect.errors import ConflictError, HostError, NotFoundError
from architect.model.config import EdgeConfig
from architect.model.endpoints import Protocol, Publish
from architect.model.ids import VmId, Vni
from architect.runtime.certificates import make_ca, make_certificate
from architect.runtime.config_file import write_config
from architect.runtime.namespaces import delete_namespace
from tests.host.conduit_network import CLIENT, EDGE, HOSTS, PUBLIC, Guest, Network, missing_capability, port_of, small_internet
from tests.host.traffic import HashedTcp, NumberedUdp

pytestmark = [pytest.mark.host, pytest.mark.skipif(bool(missing_capability()), reason=missing_capability())]

VM, VNI = VmId("vm-1"), Vni(1)
PUBLISH = (Publish(8080, 80), Publish(5353, 53, Protocol.UDP))
PAUSE_S = 0.05
UDP_PACKETS_PER_S = 500
UDP_PACKETS_MIN, UDP_PACKETS_WAITING = 100, 20
TCP_BYTES_PER_S = 1_000_000
FLOWING_S = 30


class Scene:
    """The network with an edge process, two hosts, and one VM that runs on host a and has flows open in all directions."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.tls = network.scratch / "tls"
        make_ca(self.tls)
        for name in ("control", "agent:a", "agent:b", "edge:edge"):
            make_certificate(self.tls, self.tls / name, name)
        self.config = network.scratch / "edge.json"
        write_config(
            self.config,
            EdgeConfig(
                network.fabric, "edge", "eth0", EDGE, (PUBLIC,), 7000, str(network.scratch / "edge"), str(self.tls / "edge:edge")
            ),
        )
        self.edge = self.start_edge()
        self.hosts: dict[str, HostDatapath] = {role: network.host(role) for role in HOSTS}
        self.guest = Guest(network, VNI)
        self.opened = contextlib.ExitStack()
        self.udp: list[NumberedUdp] = []
        self.tcp: list[HashedTcp] = []

    def start_edge(self) -> subprocess.Popen[bytes]:
        """Start the edge's process."""
        arguments = [sys.executable, "-m", "architect.conduit.edge_main", "--config", str(self.config)]
        return subprocess.Popen(self.network.command("edge", *arguments))

    @contextlib.asynccontextmanager
    async def client(self, name: str) -> AsyncIterator[EdgeClient]:
        """A connection to the edge; the caller runs in a namespace that reaches it."""
        client = EdgeClient(EDGE, 7000, self.tls / name, name, "edge")
        running = asyncio.create_task(client.run())
        try:
            await client.wait_connected(20)
            yield client
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    def as_agent(self, role: str, steps: Callable[[EdgeClient], Awaitable[object]]) -> None:
        """Run `steps(edge client)` in a host's namespace with that host's name."""

        async def run() -> None:
            async with self.client(f"agent:{role}") as client:
                await steps(client)

        self.network.inside(role, lambda: asyncio.run(run()))

    def define(self) -> None:
        """As the control plane: the VM exists, and is on host a in term 1."""

        async def run() -> None:
            async with self.client("control") as client:
                await client.define_vm(VM, VNI, port_of(VNI).inner_address, PUBLISH)
                await client.steer(VM, VNI, 1, HOSTS["a"])

        self.network.inside("b", lambda: asyncio.run(run()))

    def add(self, role: str, state: PortState) -> None:
        """Make the VM's port on a host."""
        self.network.inside(role, lambda: self.hosts[role].add_vm(port_of(VNI), state))

    def open_flows(self) -> None:
        """UDP and TCP, published and opened by the VM, both ways."""
        network, keep = self.network, self.opened.enter_context
        received = keep(network.open_socket("vm1", socket.SOCK_DGRAM))
        received.bind(("0.0.0.0", 53))
        sender = keep(network.open_socket("client", socket.SOCK_DGRAM))
        self.udp.append(NumberedUdp(sender, (PUBLIC, 5353), received, UDP_PACKETS_PER_S))
        outside = keep(network.open_socket("client", socket.SOCK_DGRAM))
        outside.bind(("0.0.0.0", 9100))
        inner = keep(network.open_socket("vm1", socket.SOCK_DGRAM))
        self.udp.append(NumberedUdp(inner, (CLIENT, 9100), outside, UDP_PACKETS_PER_S))
        for listening, port, connecting, target in (
            ("vm1", 80, "client", (PUBLIC, 8080)),
            ("client", 9101, "vm1", (CLIENT, 9101)),
        ):
            listener = keep(network.listener(listening, port))
            left = keep(network.open_socket(connecting))
            left.connect(target)
            self.tcp.append(HashedTcp(left, keep(listener.accept()[0]), TCP_BYTES_PER_S))

    def wait_flowing(self) -> None:
        """Until each flow has carried enough to show what happens to it."""
        deadline_s = time.monotonic() + FLOWING_S
        while any(len(udp.received) < UDP_PACKETS_MIN for udp in self.udp) or any(tcp.bytes_received == 0 for tcp in self.tcp):
            assert time.monotonic() < deadline_s, ([len(udp.received) for udp in self.udp], [tcp.errors for tcp in self.tcp])
            time.sleep(0.01)

    async def pause_until_packets_wait(self) -> None:
        """Pause the VM, for so long that its tap on host a holds packets of the first flow."""
        self.guest.pause()
        sent = self.udp[0].sent
        async with asyncio.timeout(FLOWING_S):
            while self.udp[0].sent < sent + UDP_PACKETS_WAITING or self.hosts["a"].tap(VNI).is_empty():  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    def stop_flows(self) -> None:
        """End the traffic."""
        for tcp in self.tcp:
            tcp.stop()
        for udp in self.udp:
            udp.stop()

    def assert_unharmed(self) -> None:
        """No packet was lost or reordered, no connection hurt."""
        for udp in self.udp:
            assert udp.sent >= UDP_PACKETS_MIN
            assert (udp.lost, udp.reordered) == (0, 0)
        for tcp in self.tcp:
            assert tcp.is_intact, tcp.errors

    def close(self) -> None:
        """End everything."""
        self.opened.close()
        self.guest.close()
        for datapath in self.hosts.values():
            datapath.close()
        self.edge.kill()
        self.edge.wait()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """A VM on host a with flows open."""
    with small_internet(tmp_path) as network, contextlib.closing(Scene(network)) as made:
        made.add("a", PortState.LOCAL)
        made.guest.run_on(made.hosts["a"].tap(VNI))
        made.define()
        made.open_flows()
        try:
            made.wait_flowing()
            yield made
        finally:
            made.stop_flows()


def resume_on(scene: Scene, role: str) -> None:
    """The VM, paused, goes on at another host, with the frames that host's tap has held."""
    scene.guest.kill()
    scene.guest.run_on(scene.hosts[role].tap(VNI))


async def switch(scene: Scene, edge: EdgeClient, source: str, target: str, term: int) -> None:
    """The steps of a handover, with a pause of `PAUSE_S` in place of what it copies."""
    steered = SteeredVm(edge, VM, VNI)
    leaving = SourceFlows(scene.hosts[source], VNI, HOSTS[target], edge)
    taking = TargetFlows(scene.hosts[target], VNI, HOSTS[source])
    await taking.hold()
    await steered.steer(term, HOSTS[target], HOSTS[source])
    await steered.settle()
    await leaving.set_forward(HOSTS[target])
    await leaving.wait_drained(2)
    scene.guest.pause()
    await asyncio.sleep(PAUSE_S)
    resume_on(scene, target)
    await taking.set_local()
    await leaving.wait_quiet(5)
    await steered.steer(term + 1, HOSTS[target], "")


def test_a_switch_loses_nothing_and_the_source_can_be_deleted(scene: Scene) -> None:
    scene.add("b", PortState.BLOCKED)
    scene.as_agent("a", lambda edge: switch(scene, edge, "a", "b", 1))
    scene.hosts.pop("a").close()
    delete_namespace(f"{scene.network.tag}-a")
    time.sleep(0.5)
    scene.stop_flows()
    scene.assert_unharmed()
    assert scene.network.inside("b", lambda: scene.hosts["b"].counters(VNI)).held_dropped == 0
    assert (fabric_folder(scene.network.fabric) / "a").exists()
    scene.hosts.pop("b").close()
    scene.hosts["b"] = scene.network.host("b")
    assert not (fabric_folder(scene.network.fabric) / "a").exists(), "a start removes the pins of hosts that are gone"


def test_three_switches_there_and_back_lose_nothing(scene: Scene) -> None:
    scene.add("b", PortState.BLOCKED)
    scene.as_agent("a", lambda edge: switch(scene, edge, "a", "b", 1))
    scene.as_agent("b", lambda edge: switch(scene, edge, "b", "a", 2))
    scene.as_agent("a", lambda edge: switch(scene, edge, "a", "b", 3))
    scene.stop_flows()
    scene.assert_unharmed()


def test_what_a_guest_too_slow_for_the_drain_has_left_is_not_lost(scene: Scene) -> None:
    scene.add("b", PortState.BLOCKED)

    async def slow(edge: EdgeClient) -> None:
        leaving, taking = SourceFlows(scene.hosts["a"], VNI, HOSTS["b"], edge), TargetFlows(scene.hosts["b"], VNI, HOSTS["a"])
        steered = SteeredVm(edge, VM, VNI)
        await scene.pause_until_packets_wait()
        await taking.hold()
        await steered.steer(1, HOSTS["b"], HOSTS["a"])
        await steered.settle()
        await leaving.set_forward(HOSTS["b"])
        with pytest.raises(HostError, match="has not taken its packets"):
            await leaving.wait_drained(0.05)
        await leaving.relay_rest(HOSTS["b"])
        assert scene.hosts["a"].tap(VNI).is_empty()
        resume_on(scene, "b")
        await taking.set_local()
        await leaving.wait_quiet(5)

    scene.as_agent("a", slow)
    scene.stop_flows()
    assert [udp.lost for udp in scene.udp] == [0, 0]
    assert all(tcp.is_intact for tcp in scene.tcp)


def test_steering_only_at_the_resume_loses_packets(scene: Scene) -> None:
    """The order that `switch` is careful about does matter: this shows that the instruments would see it."""
    scene.add("b", PortState.LOCAL)

    async def wrong(edge: EdgeClient) -> None:
        await scene.pause_until_packets_wait()
        await edge.steer(VM, VNI, 1, HOSTS["b"], HOSTS["a"])
        resume_on(scene, "b")

    scene.as_agent("a", wrong)
    scene.stop_flows()
    assert scene.udp[0].lost > 0


def test_an_undone_switch_loses_nothing(scene: Scene) -> None:
    scene.add("b", PortState.BLOCKED)

    async def undone(edge: EdgeClient) -> None:
        steered = SteeredVm(edge, VM, VNI)
        leaving = SourceFlows(scene.hosts["a"], VNI, HOSTS["b"], edge)
        taking = TargetFlows(scene.hosts["b"], VNI, HOSTS["a"])
        await taking.hold()
        await steered.steer(1, HOSTS["b"], HOSTS["a"])
        await steered.settle()
        await leaving.set_forward(HOSTS["b"])
        await leaving.wait_drained(2)
        scene.guest.pause()
        await asyncio.sleep(PAUSE_S)
        await leaving.set_local()
        await taking.relay(HOSTS["a"])
        await steered.steer(1, HOSTS["a"], HOSTS["b"])
        await steered.settle()
        scene.guest.resume()

    scene.as_agent("a", undone)
    time.sleep(0.3)
    scene.stop_flows()
    scene.assert_unharmed()
    assert scene.hosts["b"].tap(VNI).is_empty()


def test_an_edge_process_that_is_killed_breaks_no_flow_and_knows_all_when_it_is_back(scene: Scene) -> None:
    scene.as_agent("a", lambda edge: edge.steer(VM, VNI, 5, HOSTS["a"]))
    scene.edge.kill()
    scene.edge.wait()
    time.sleep(0.4)
    scene.edge = scene.start_edge()

    async def look(edge: EdgeClient) -> None:
        state = await edge.read(VM)
        assert [(vm.host, vm.term, len(vm.endpoints)) for vm in state.vms] == [(HOSTS["a"], 5, 2)]
        with pytest.raises(ConflictError, match="term 4 is over"):
            await edge.steer(VM, VNI, 4, HOSTS["b"])

    scene.as_agent("a", look)
    time.sleep(0.3)
    scene.stop_flows()
    scene.assert_unharmed()


def test_a_request_during_an_edge_restart_is_answered_by_the_new_process(scene: Scene) -> None:
    async def through_restart(edge: EdgeClient) -> None:
        scene.edge.kill()
        scene.edge.wait()
        scene.edge = scene.start_edge()
        await edge.steer(VM, VNI, 1, HOSTS["a"])

    scene.as_agent("a", through_restart)
    scene.stop_flows()
    scene.assert_unharmed()


def test_an_agent_that_starts_again_adopts_the_vms_port_and_tap(scene: Scene) -> None:
    scene.hosts.pop("a").close()
    time.sleep(0.2)
    again = scene.hosts["a"] = scene.network.host("a")
    assert again.vnis() == [VNI]
    assert scene.guest.pump is not None
    facts = again.adopt(VNI, scene.guest.pump.pid)
    assert (facts.state, facts.inner_address, facts.edge_address) == (PortState.LOCAL, port_of(VNI).inner_address, EDGE)
    scene.add("b", PortState.BLOCKED)
    scene.as_agent("a", lambda edge: switch(scene, edge, "a", "b", 1))
    scene.stop_flows()
    scene.assert_unharmed()
    with pytest.raises(NotFoundError, match="this host has none"):
        again.adopt(99)


def test_a_removed_vm_leaves_no_tap_and_no_port(scene: Scene) -> None:
    scene.stop_flows()
    scene.network.inside("a", lambda: scene.hosts["a"].remove_vm(VNI))
    scene.network.inside("a", lambda: scene.hosts["a"].remove_vm(VNI))
    assert scene.hosts["a"].vnis() == []
    assert b"avt" not in subprocess.run(scene.network.command("a", "ip", "link"), check=True, capture_output=True).stdout


def test_cleaning_up_leaves_nothing(tmp_path: Path) -> None:
    with small_internet(tmp_path) as network:
        host, edge = network.host("a"), network.edge()
        tap = network.inside("a", lambda: host.add_vm(port_of(1)))
        for role in ("a", "edge"):
            network.inside(role, lambda: cleanup(network.fabric))
            links = subprocess.run(network.command(role, "ip", "-o", "link"), check=True, capture_output=True, text=True).stdout
            assert "avt" not in links and "architect0" not in links
        assert not fabric_folder(network.fabric).exists()
        network.inside("edge", edge.detach)
        filters = subprocess.run(
            network.command("edge", "tc", "filter", "show", "dev", "eth0", "ingress"), check=True, capture_output=True
        ).stdout
        assert b"from_public" not in filters
        tap.close()
        host.close()
    assert not list(Path("/run/netns").glob(f"{network.tag}-*"))


def test_a_second_node_in_one_namespace_and_a_second_of_one_name_are_refused(tmp_path: Path) -> None:
    with small_internet(tmp_path) as network:
        host = network.host("a")
        with pytest.raises(ConflictError, match=f"it is the tunnel of architect {network.fabric} a"):
            network.inside("a", HostDatapath(network.fabric, "c", "eth0", HOSTS["a"]).attach)
        with pytest.raises(ConflictError, match="it exists in another network namespace"):
            network.inside("b", HostDatapath(network.fabric, "a", "eth0", HOSTS["a"]).attach)
        host.close()
