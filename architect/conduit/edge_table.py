"""The edge's table: which VMs there are, where each is, what each publishes. Pure: a change makes a new table or is refused.

Two rules: a public port belongs to one VM, and a VM's place changes only under a term that is not older than the highest seen for
it. Used by the edge's server, which stores a table before it takes effect.
"""

from __future__ import annotations

import msgspec

from architect.conduit.edge_datapath import EdgeRoute
from architect.conduit.layout import TUNNEL_PORT, packed_address
from architect.errors import ConflictError, NotFoundError, UsageError
from architect.model.endpoints import Endpoint, Protocol, Publish
from architect.model.ids import VNI_MAX, VmId, Vni
from architect.wire.edge_messages import DefineVm, EdgeVm, Steer

PUBLISH_MAX = 256


class EdgeRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One VM. `is_tracked`: its flows were reset once, so connections from before are refused."""

    vm: VmId
    vni: Vni
    inner_address: str
    public_address: str
    endpoints: tuple[Endpoint, ...] = ()
    host: str = ""
    previous: str = ""
    term: int = 0
    is_tracked: bool = False

    def route(self) -> EdgeRoute:
        """What the datapath has to know of it."""
        return EdgeRoute(
            self.vni, self.inner_address, self.host, self.previous, self.public_address, self.is_tracked, self.endpoints
        )

    def facts(self) -> EdgeVm:
        """What others are told of it."""
        return EdgeVm(
            vm=self.vm, vni=self.vni, inner_address=self.inner_address, host=self.host, previous=self.previous, term=self.term,
            endpoints=self.endpoints,
        )  # fmt: skip


class EdgeTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All VMs of an edge."""

    records: tuple[EdgeRecord, ...] = ()

    def find(self, vm: VmId) -> EdgeRecord | None:
        """The VM's record."""
        return next((record for record in self.records if record.vm == vm), None)

    def get(self, vm: VmId) -> EdgeRecord:
        """The VM's record.

        Raises:
            NotFoundError: it was never defined here.
        """
        if (record := self.find(vm)) is None:
            raise NotFoundError(f"VM {vm}", "this edge does not know it", "define it first (the control plane does)")
        return record

    def routes(self) -> tuple[EdgeRoute, ...]:
        """All VMs as the datapath has to know them."""
        return tuple(record.route() for record in self.records)

    def with_record(self, record: EdgeRecord) -> EdgeTable:
        """This table with that record instead of the VM's present one."""
        return EdgeTable((*(other for other in self.records if other.vm != record.vm), record))

    def without(self, vm: VmId) -> EdgeTable:
        """This table without the VM."""
        return EdgeTable(tuple(record for record in self.records if record.vm != vm))


class EdgePorts(msgspec.Struct, frozen=True):
    """The edge's public addresses, and the TCP port that its own server has on them."""

    public_addresses: tuple[str, ...]
    control_port: int


def define(table: EdgeTable, message: DefineVm, ports: EdgePorts) -> EdgeTable:
    """The table with the VM as the message says; where it is and its term stay as they are.

    Raises:
        UsageError: an address, VNI or port is none, or a port is asked for twice.
        ConflictError: a port, the VNI or the inner address is another VM's; names it.
    """
    _check_values(message)
    others = table.without(message.vm)
    for record in others.records:
        if record.vni == message.vni or record.inner_address == message.inner_address:
            raise ConflictError(
                f"VM {message.vm}",
                f"VM {record.vm} has VNI {record.vni} and address {record.inner_address}",
                "forget that VM, or give this one others",
            )
    present = table.find(message.vm)
    public_address = _choose_address(others, message, ports, present)
    endpoints = tuple(
        Endpoint(public_address, publish.public_port, publish.protocol, publish.guest_port) for publish in message.publish
    )
    base = present or EdgeRecord(message.vm, message.vni, message.inner_address, public_address)
    return table.with_record(
        msgspec.structs.replace(
            base, vni=message.vni, inner_address=message.inner_address, public_address=public_address, endpoints=endpoints
        )
    )


def steer(table: EdgeTable, message: Steer) -> EdgeTable:
    """The table with the VM at `message.host`.

    Raises:
        NotFoundError: the VM was never defined here.
        ConflictError: the term is older than the highest seen; the sender has lost the VM.
        UsageError: an address is none.
    """
    record = table.get(message.vm)
    packed_address(message.host), packed_address(message.previous)
    if message.vni != record.vni:
        raise ConflictError(f"VM {message.vm}", f"its VNI is {record.vni}, not {message.vni}", "ask the control plane anew")
    if message.term < record.term:
        raise ConflictError(
            f"VM {message.vm}",
            f"term {message.term} is over, the edge has seen term {record.term}",
            "read the ownership log: another host has this VM",
        )
    return table.with_record(msgspec.structs.replace(record, host=message.host, previous=message.previous, term=message.term))


def mark_reset(table: EdgeTable, vm: VmId) -> EdgeTable:
    """The table with the VM's older connections refused from now on.

    Raises:
        NotFoundError: the VM was never defined here.
    """
    return table.with_record(msgspec.structs.replace(table.get(vm), is_tracked=True))


def _check_values(message: DefineVm) -> None:
    packed_address(message.inner_address)
    if not message.inner_address or not 0 < message.vni <= VNI_MAX or len(message.publish) > PUBLISH_MAX:
        raise UsageError(
            f"VM {message.vm}", "no inner address, no VNI, or too many ports", f"publish at most {PUBLISH_MAX} ports a VM"
        )
    for kind, side in (("public", "public_port"), ("guest", "guest_port")):
        seen: dict[tuple[int, Protocol], Publish] = {}
        for publish in message.publish:
            port: int = getattr(publish, side)
            if not 0 < port < 65536:
                raise UsageError(f"{kind} port {port}", "not a port", "choose one of 1 to 65535")
            if (other := seen.setdefault((port, publish.protocol), publish)) is not publish:
                raise UsageError(
                    f"{kind} port {port}/{publish.protocol}",
                    f"asked for twice ({other.public_port}:{other.guest_port} and {publish.public_port}:{publish.guest_port})",
                    "publish each port once; let the program listen on a second port if it needs two",
                )


def _choose_address(others: EdgeTable, message: DefineVm, ports: EdgePorts, present: EdgeRecord | None) -> str:
    """The VM's public address: the one it has, or the first where all its ports are free."""
    taken = {
        (endpoint.address, endpoint.port, endpoint.protocol): record.vm
        for record in others.records
        for endpoint in record.endpoints
    }
    candidates = (
        (present.public_address,)
        if present is not None and present.public_address in ports.public_addresses
        else ports.public_addresses
    )
    refusal: ConflictError | None = None
    for address in candidates:
        refusal = _refusal(address, message.publish, taken, ports.control_port)
        if refusal is None:
            return address
    raise refusal or ConflictError("edge", "it has no public address", "configure one")


def _refusal(
    address: str, wanted: tuple[Publish, ...], taken: dict[tuple[str, int, Protocol], VmId], control_port: int
) -> ConflictError | None:
    kept = {(control_port, Protocol.TCP), (TUNNEL_PORT, Protocol.UDP)}
    for publish in wanted:
        thing = f"port {publish.public_port}/{publish.protocol} of {address}"
        if (owner := taken.get((address, publish.public_port, publish.protocol))) is not None:
            return ConflictError(thing, f"VM {owner} has it", "choose another public port, or remove that VM")
        if (publish.public_port, publish.protocol) in kept:
            return ConflictError(thing, "the edge itself has it", "choose another public port")
    return None
