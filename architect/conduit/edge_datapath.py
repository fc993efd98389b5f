"""EdgeDatapath: the edge's BPF maps and programs: where VMs are, what they publish, which flows they opened.

The maps are pinned and the programs stay attached when the edge's process ends, so flows go on without it. `apply` makes the maps
equal to a table by changing only what differs; packets never see a service vanish and come back. Used by the edge's server.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import msgspec

from architect.conduit import links
from architect.conduit.bpf_map import BpfMap, KeyT, ValueT
from architect.conduit.bpf_object import BpfObject, detach
from architect.conduit.flow_aging import FlowMaps, FlowTimeouts, age_flows, forget_flows
from architect.conduit.flow_reset import ProbedVm, probe_connections
from architect.conduit.layout import (
    LAYOUT_VERSION,
    TUNNEL_BYTES,
    TUNNEL_PORT,
    U32,
    U64,
    EdgeVmEntry,
    FlowIn,
    FlowInKey,
    FlowOut,
    FlowOutKey,
    NodeConfig,
    ReverseKey,
    ServiceEntry,
    ServiceKey,
    SessionKey,
    packed_address,
    packed_port,
)
from architect.conduit.pins import prepare_pins, remove_pins
from architect.errors import ConflictError
from architect.model.endpoints import Endpoint, Protocol
from architect.runtime.namespaces import current_namespace

_PROTOCOL_NUMBERS = {Protocol.TCP: 6, Protocol.UDP: 17}


class EdgeRoute(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the datapath has to know of a VM. `public_address` is the source of the flows that it opens."""

    vni: int
    inner_address: str
    host: str
    previous: str
    public_address: str
    is_tracked: bool
    endpoints: tuple[Endpoint, ...]


class EdgeDatapath:
    """One edge's maps and programs.

    :param nic: the link with the public addresses.
    :param control_port: TCP port that the edge's own server takes; kept for the kernel, as the tunnel's port is.
    """

    def __init__(
        self, fabric: str, name: str, nic: str, underlay_address: str, public_addresses: tuple[str, ...], control_port: int
    ) -> None:
        self._fabric = fabric
        self._node = name
        self._nic = nic
        self._address = underlay_address
        self._public = public_addresses
        self._control_port = control_port
        self._object: BpfObject | None = None

    def attach(self) -> None:
        """Make tunnel, maps and programs, or adopt what an earlier process of this edge left. Idempotent.

        Raises:
            HostError: this machine lacks something, named.
            ConflictError: another node has its tunnel in this network namespace.
            IncompatibleError: an earlier process of another version left its maps.
        """
        if self._object is not None:
            return
        pins = prepare_pins(self._fabric, self._node)
        underlay_mtu = links.link_mtu(self._nic)
        links.ensure_addresses(self._nic, self._public)
        tunnel = links.ensure_tunnel(f"architect {self._fabric} {self._node}", underlay_mtu)
        links.enable_forwarding(links.TUNNEL_NAME)
        loaded = BpfObject("edge.bpf.o", pins)
        try:
            self._open_maps(loaded)
            config = NodeConfig(
                current_namespace().inode, LAYOUT_VERSION, tunnel, packed_address(self._address), underlay_mtu - TUNNEL_BYTES
            )
            self._nodes.put(U32(0), config)
            _make_equal(self._vips, {bytes(U32(packed_address(address))): U32(1) for address in self._public}, U32)
            loaded.attach("from_tunnel", tunnel)
            index = links.link_index(self._nic)
            assert index is not None
            loaded.attach("from_public", index)
        except BaseException:
            loaded.close()
            raise
        self._object = loaded

    def _open_maps(self, loaded: BpfObject) -> None:
        self._nodes = loaded.map("node", U32, NodeConfig)
        self._vips = loaded.map("vips", U32, U32)
        self._vms = loaded.map("vms", U32, EdgeVmEntry)
        self._services = loaded.map("services", ServiceKey, ServiceEntry)
        self._reverses = loaded.map("reverses", ReverseKey, U32)
        self._flows = FlowMaps(
            loaded.map("flows_out", FlowOutKey, FlowOut),
            loaded.map("flows_in", FlowInKey, FlowIn),
            loaded.map("flow_counts", U32, U32),
            loaded.map("sessions", SessionKey, U64),
        )

    def apply(self, routes: tuple[EdgeRoute, ...]) -> None:
        """Make VMs and services in the maps equal to `routes`. Idempotent.

        Raises:
            BpfError: a map is full, or the kernel refuses.
        """
        self._loaded()
        services, reverses = self._kept_ports(), {}
        for route in routes:
            for endpoint in route.endpoints:
                protocol = _PROTOCOL_NUMBERS[endpoint.protocol]
                key = ServiceKey(packed_address(endpoint.address), packed_port(endpoint.port), protocol)
                services[bytes(key)] = ServiceEntry(route.vni, packed_port(endpoint.guest_port))
                reverse = ReverseKey(route.vni, packed_port(endpoint.guest_port), protocol)
                reverses[bytes(reverse)] = U32(packed_port(endpoint.port))
        _make_equal(self._vms, {bytes(U32(route.vni)): _vm_entry(route) for route in routes}, U32)
        _make_equal(self._reverses, reverses, ReverseKey)
        _make_equal(self._services, services, ServiceKey)

    def _kept_ports(self) -> dict[bytes, ServiceEntry]:
        kept = {}
        for address in self._public:
            for protocol, port in ((6, self._control_port), (17, TUNNEL_PORT)):
                kept[bytes(ServiceKey(packed_address(address), packed_port(port), protocol))] = ServiceEntry()
        return kept

    def steer(self, route: EdgeRoute) -> None:
        """Set one VM's entry: from the return on, its packets go to `route.host`.

        Raises:
            BpfError: the kernel refuses.
        """
        self._loaded()
        self._vms.put(U32(route.vni), _vm_entry(route))

    def forget_flows(self, vni: int) -> None:
        """Forget all flows of a VM.

        Raises:
            BpfError: the kernel refuses.
        """
        self._loaded()
        forget_flows(self._flows, vni)

    def reset_flows(self, route: EdgeRoute) -> int:
        """Forget all flows of a VM and make both ends of its TCP connections notice; how many connections were told.

        Connections to published ports end only if `route` is tracked, and was applied before.

        Raises:
            HostError: the kernel refuses.
        """
        self._loaded()
        public_ports = {endpoint.guest_port: endpoint.port for endpoint in route.endpoints if endpoint.protocol is Protocol.TCP}
        vm = ProbedVm(route.vni, route.inner_address, route.public_address, route.host, public_ports)
        return probe_connections(vm, forget_flows(self._flows, route.vni), self._address)

    def age_flows(self, timeouts: FlowTimeouts) -> int:
        """Forget the flows whose both directions are over or silent for too long; how many. Blocks for some 10 µs a flow.

        Raises:
            BpfError: the kernel refuses.
        """
        self._loaded()
        return age_flows(self._flows, timeouts)

    def counters(self) -> dict[str, int]:
        """The edge's packet counters by name."""
        return self._loaded().counters()

    def close(self) -> None:
        """Give this process's descriptors back; programs and maps go on. Idempotent."""
        if self._object is not None:
            for opened in (self._nodes, self._vips, self._vms, self._services, self._reverses):
                opened.close()
            self._flows.close()
            self._object.close()
            self._object = None

    def detach(self) -> None:
        """Remove everything of this edge: filters, tunnel, pins. Idempotent; works without `attach`."""
        self.close()
        if (index := links.link_index(self._nic)) is not None:
            detach(index)
        links.delete_link(links.TUNNEL_NAME)
        remove_pins(prepare_pins(self._fabric, self._node))

    def _loaded(self) -> BpfObject:
        if self._object is None:
            raise ConflictError(f"datapath of {self._node}", "it is not attached", "call attach first")
        return self._object


def _vm_entry(route: EdgeRoute) -> EdgeVmEntry:
    return EdgeVmEntry(
        packed_address(route.inner_address),
        packed_address(route.host),
        packed_address(route.previous),
        packed_address(route.public_address),
        int(route.is_tracked),
    )


def _make_equal(bpf_map: BpfMap[KeyT, ValueT], wanted: Mapping[bytes, ValueT], key_type: type[KeyT]) -> None:
    """Make a map's entries those of `wanted` (keys as bytes): put what differs, then delete what is too many."""
    present = {bytes(key): (key, bytes(value)) for key, value in bpf_map.entries()}
    for packed, value in wanted.items():
        if packed not in present or present[packed][1] != bytes(value):
            bpf_map.put(cast("KeyT", key_type.from_buffer_copy(packed)), value)
    for packed, (key, _value) in present.items():
        if packed not in wanted:
            bpf_map.delete(key)
