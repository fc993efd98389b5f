"""HostDatapath: a host's part of the network, between the tunnel and its VMs' taps.

A host keeps no state about flows. Each VM has a port in one of three states: BLOCKED (neither in nor out), LOCAL (its tap takes
and holds packets, the VM may run or be about to), FORWARD (the VM moved: what still comes goes to the other host, what it still
sends goes out). The state is one map entry, read by BPF programs that stay attached when the agent's process ends; `attach` of a
new process adopts them. Used by the agent. All methods block for microseconds (states) or some milliseconds (links).
"""

from __future__ import annotations

import msgspec

from architect.conduit import links
from architect.conduit.bpf_object import BpfObject, detach
from architect.conduit.layout import (
    LAYOUT_VERSION,
    TUNNEL_BYTES,
    U32,
    NodeConfig,
    PortState,
    PortStats,
    VmPortEntry,
    address_text,
    packed_address,
)
from architect.conduit.pins import prepare_pins, remove_fabric_pins, remove_pins
from architect.conduit.tap import TAP_QUEUE_FRAMES, Tap, open_tap, take_tap
from architect.errors import ConflictError, HostError, IncompatibleError, NotFoundError, UsageError
from architect.model.ids import VNI_MAX
from architect.runtime.namespaces import current_namespace

TAP_PREFIX = "avt"
TCP_IP_BYTES = 40
RELAY_BATCH_FRAMES = 64
MTU_MIN = 576


class VmPort(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A VM's connection to the network: the same on every host but for nothing. `mtu` is the guest's, in bytes."""

    vni: int
    inner_address: str
    mac: str
    mtu: int
    edge_address: str


class PortFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What exists for a VM: its port's state, where it forwards to, and its tap (None where only QEMU has its descriptor)."""

    vni: int
    inner_address: str
    edge_address: str
    state: PortState
    forward_address: str
    tap_name: str


class PortCounters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A VM's packets and bytes on this host. `held_dropped`: frames that a full tap could not hold; non-zero means loss."""

    to_vm_packets: int
    to_vm_bytes: int
    from_vm_packets: int
    from_vm_bytes: int
    forwarded_packets: int
    relayed_packets: int
    blocked_packets: int
    held_dropped: int


def tap_name(vni: int) -> str:
    """The tap of a VM, the same on every host."""
    return f"{TAP_PREFIX}{vni:06x}"


class HostDatapath:
    """One host's ports; owns the taps' descriptors that it opened.

    :param nic: the link that leads to edge and hosts.
    :param underlay_address: this host's own address there; outer source of its tunnel packets.
    """

    def __init__(self, fabric: str, host: str, nic: str, underlay_address: str) -> None:
        self._fabric = fabric
        self._node = host
        self._nic = nic
        self._address = underlay_address
        self._taps: dict[int, Tap] = {}
        self._object: BpfObject | None = None

    def attach(self) -> None:
        """Make tunnel, maps and programs, or adopt what an earlier process of this host left. Idempotent.

        Raises:
            HostError: this machine lacks something, named.
            ConflictError: another node has its tunnel in this network namespace.
            IncompatibleError: an earlier process of another version left its maps.
        """
        if self._object is not None:
            return
        pins = prepare_pins(self._fabric, self._node)
        underlay_mtu = links.link_mtu(self._nic)
        tunnel = links.ensure_tunnel(f"architect {self._fabric} {self._node}", underlay_mtu)
        loaded = BpfObject("host.bpf.o", pins)
        try:
            self._open_maps(loaded)
            config = NodeConfig(
                current_namespace().inode, LAYOUT_VERSION, tunnel, packed_address(self._address), underlay_mtu - TUNNEL_BYTES
            )
            self._nodes.put(U32(0), config)
            self._adopt_taps(loaded)
            loaded.attach("from_tunnel", tunnel)
        except BaseException:
            loaded.close()
            raise
        self._object = loaded
        self._payload_bytes = underlay_mtu - TUNNEL_BYTES

    def _open_maps(self, loaded: BpfObject) -> None:
        self._nodes = loaded.map("node", U32, NodeConfig)
        self._ports = loaded.map("ports", U32, VmPortEntry)
        self._vni_of_tap = loaded.map("taps", U32, U32)
        self._stats = loaded.map("stats", U32, PortStats)

    def _adopt_taps(self, loaded: BpfObject) -> None:
        """Put this process's program on the taps that are still there; forget those that went with their QEMU."""
        present = set(links.link_names(TAP_PREFIX).values())
        for ifindex, _vni in list(self._vni_of_tap.entries()):
            if ifindex.value in present:
                loaded.attach("from_vm", ifindex.value)
            else:
                self._vni_of_tap.delete(ifindex)

    def add_vm(self, port: VmPort, state: PortState = PortState.BLOCKED) -> Tap:
        """Make the VM's tap and port; BLOCKED unless asked otherwise. Repeated by the same process, it returns the same tap.

        Raises:
            UsageError: an address, MAC, MTU or VNI is none.
            IncompatibleError: the MTU does not fit into this host's underlay.
            ConflictError: somebody has this VM's tap; adopt it.
            HostError: the kernel refuses.
        """
        loaded = self._loaded()
        entry = self._entry(port, state)
        if (tap := self._taps.get(port.vni)) is None:
            tap = open_tap(tap_name(port.vni))
        try:
            entry.tap_ifindex = links.set_up_tap(tap.name, port.mtu, TAP_QUEUE_FRAMES)
            self._vni_of_tap.put(U32(entry.tap_ifindex), U32(port.vni))
            if self._stats.get(U32(port.vni)) is None:
                self._stats.put(U32(port.vni), PortStats())
            loaded.attach("from_vm", entry.tap_ifindex)
            self._ports.put(U32(port.vni), entry)
        except BaseException:
            tap.close()
            self._taps.pop(port.vni, None)
            raise
        self._taps[port.vni] = tap
        return tap

    def _entry(self, port: VmPort, state: PortState) -> VmPortEntry:
        try:
            mac = bytes.fromhex(port.mac.replace(":", ""))
        except ValueError:
            mac = b""
        if len(mac) != 6 or not 0 < port.vni <= VNI_MAX or port.mtu < MTU_MIN:
            raise UsageError(f"port of VM {port.vni}", f"MAC {port.mac} or MTU {port.mtu} is none", "report this as a defect")
        if port.mtu > self._payload_bytes:
            raise IncompatibleError(
                f"MTU {port.mtu}",
                f"link {self._nic} carries {self._payload_bytes} inside the tunnel",
                "choose a host with a larger MTU",
            )
        entry = VmPortEntry(state=state, inner=packed_address(port.inner_address), edge=packed_address(port.edge_address))
        entry.mss = port.mtu - TCP_IP_BYTES
        entry.mac[:] = mac
        return entry

    def set_local(self, vni: int, peer_address: str | None = None) -> None:
        """The VM is here: its tap takes packets.

        `peer_address`: the other host of a move, from where packets are taken too (forwarded, or relayed if the move is undone);
        "" for none. Left out, it is the host that this port forwarded to, if it did: that one may send back what it holds.

        Raises:
            NotFoundError: there is no such port.
        """
        entry = self._port(vni)
        entry.peer = (entry.forward or entry.peer) if peer_address is None else packed_address(peer_address)
        entry.state, entry.forward = PortState.LOCAL, 0
        self._ports.put(U32(vni), entry)

    def set_forward(self, vni: int, host_address: str) -> None:
        """The VM is at another host: send on what comes for it. From the return on, nothing more enters the tap.

        What a CPU had already taken up comes a moment later; `wait_drained` of the tap sees it, as it polls after that.

        Raises:
            NotFoundError: there is no such port.
        """
        entry = self._port(vni)
        entry.state, entry.forward = PortState.FORWARD, packed_address(host_address)
        self._ports.put(U32(vni), entry)

    def set_blocked(self, vni: int) -> None:
        """The VM must not speak or hear.

        Raises:
            NotFoundError: there is no such port.
        """
        entry = self._port(vni)
        entry.state, entry.forward, entry.peer = PortState.BLOCKED, 0, 0
        self._ports.put(U32(vni), entry)

    def relay(self, vni: int, host_address: str, frames_max: int = 2 * TAP_QUEUE_FRAMES) -> int:
        """Send what the tap holds to another host, oldest first, then forward what comes; the number of frames.

        For a VM that did not come: the port stays LOCAL while the queue empties, so that later packets queue behind earlier ones,
        and is FORWARD from then on. Bounded by `frames_max`. The other host must take packets from this one (`set_local` with
        `peer_address`).

        Raises:
            NotFoundError: there is no such port.
            HostError: this process does not have the tap.
        """
        tap = self.tap(vni)
        entry = self._port(vni)
        entry.forward = packed_address(host_address)
        self._ports.put(U32(vni), entry)
        relayed = 0
        while relayed < frames_max and (batch := tap.write_back(RELAY_BATCH_FRAMES)):
            relayed += batch
        self.set_forward(vni, host_address)
        while relayed < frames_max and (batch := tap.write_back(RELAY_BATCH_FRAMES)):
            relayed += batch
        return relayed

    def remove_vm(self, vni: int) -> None:
        """Delete the VM's port and tap. Idempotent.

        Raises:
            HostError: the kernel refuses.
        """
        self._loaded()
        self._ports.delete(U32(vni))
        name = tap_name(vni)
        if (ifindex := links.link_index(name)) is not None:
            self._vni_of_tap.delete(U32(ifindex))
            links.delete_link(name)
        self._stats.delete(U32(vni))
        if (tap := self._taps.pop(vni, None)) is not None:
            tap.close()

    def adopt(self, vni: int, qemu_process: int | None = None) -> PortFacts:
        """What exists for the VM; with QEMU's process id also take a duplicate of its tap's descriptor (`tap` has it then).

        Raises:
            NotFoundError: nothing exists.
            HostError: the process does not have the tap, or may not be looked into.
        """
        entry = self._port(vni)
        if qemu_process is not None and vni not in self._taps:
            self._taps[vni] = take_tap(tap_name(vni), qemu_process)
        return PortFacts(
            vni,
            address_text(entry.inner),
            address_text(entry.edge),
            PortState(entry.state),
            address_text(entry.forward),
            tap_name(vni),
        )

    def vnis(self) -> list[int]:
        """The VMs that have a port here, also from before a restart."""
        self._loaded()
        return sorted(vni.value for vni, _entry in self._ports.entries())

    def tap(self, vni: int) -> Tap:
        """The VM's tap.

        Raises:
            HostError: this process neither made nor adopted it.
        """
        if (tap := self._taps.get(vni)) is None:
            raise HostError(f"tap {tap_name(vni)}", "this process does not have it", "adopt it with QEMU's process id")
        return tap

    def counters(self, vni: int) -> PortCounters:
        """The VM's counters.

        Raises:
            NotFoundError: there is no such port.
        """
        self._port(vni)
        stats = self._stats.get(U32(vni)) or PortStats()
        values = {field[0]: getattr(stats, field[0]) for field in PortStats._fields_ if field[0] != "first_from_vm_ns"}
        return PortCounters(held_dropped=links.transmit_drops(tap_name(vni)), **values)

    def forwarded_packets(self, vni: int) -> int:
        """How many of the VM's packets were sent on to the host where it is now; 0 if it has no port."""
        self._loaded()
        stats = self._stats.get(U32(vni))
        return 0 if stats is None else int(stats.forwarded_packets)

    def first_from_vm_s(self, vni: int) -> float | None:
        """When the VM sent its first packet on this host, by CLOCK_MONOTONIC; None if it has not, or has no port."""
        self._loaded()
        stats = self._stats.get(U32(vni))
        return stats.first_from_vm_ns / 1e9 if stats is not None and stats.first_from_vm_ns else None

    def host_counters(self) -> dict[str, int]:
        """The host's counters by name (drops by reason)."""
        return self._loaded().counters()

    def close(self) -> None:
        """Give this process's descriptors back; programs, maps and taps that QEMU has go on. Idempotent."""
        for tap in self._taps.values():
            tap.close()
        self._taps = {}
        if self._object is not None:
            for opened in (self._nodes, self._ports, self._vni_of_tap, self._stats):
                opened.close()
            self._object.close()
            self._object = None

    def detach(self) -> None:
        """Remove everything of this host: filters, taps, tunnel, pins. Idempotent; works without `attach`."""
        self.close()
        for name, ifindex in links.link_names(TAP_PREFIX).items():
            detach(ifindex)
            links.delete_link(name)
        links.delete_link(links.TUNNEL_NAME)
        remove_pins(prepare_pins(self._fabric, self._node))

    def _port(self, vni: int) -> VmPortEntry:
        self._loaded()
        if (entry := self._ports.get(U32(vni))) is None:
            raise NotFoundError(f"port of VM {vni}", "this host has none", "add it first")
        return entry

    def _loaded(self) -> BpfObject:
        if self._object is None:
            raise ConflictError(f"datapath of {self._node}", "it is not attached", "call attach first")
        return self._object


def cleanup(fabric: str) -> None:
    """Remove what the fabric's nodes left in this network namespace (taps, tunnel) and all its pins on the machine. Idempotent.

    Raises:
        HostError: the kernel refuses.
    """
    for name, ifindex in links.link_names(TAP_PREFIX).items():
        detach(ifindex)
        links.delete_link(name)
    links.delete_link(links.TUNNEL_NAME)
    remove_fabric_pins(fabric)
