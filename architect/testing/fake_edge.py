"""A fake edge: its table is a value, its answers are those of the protocol. For tests of the control plane."""

from __future__ import annotations

from typing import Any

from architect.errors import ConflictError, NotFoundError
from architect.model.endpoints import Endpoint
from architect.model.ids import VmId
from architect.runtime.rpc import Call
from architect.wire.edge_messages import (
    DefineVm,
    Done,
    EdgeFacts,
    EdgeHello,
    EdgeState,
    EdgeVm,
    Endpoints,
    ForgetVm,
    Ping,
    Pong,
    ReadEdge,
)

PUBLIC_ADDRESS = "203.0.113.1"


class FakeEdge:
    """Knows which VM has which ports. `foreign_ports` are taken by somebody else."""

    def __init__(self) -> None:
        self.vms: dict[VmId, DefineVm] = {}
        self.foreign_ports: set[int] = set()
        self.requests: list[Any] = []

    async def handle(self, message: Any, _body: bytes, _call: Call | None) -> Any:
        """Serve a client."""
        self.requests.append(message)
        match message:
            case EdgeHello():
                return EdgeFacts((PUBLIC_ADDRESS,), "198.18.0.18")
            case DefineVm(vm):
                self._refuse_taken(message)
                self.vms[vm] = message
                return Endpoints(self.endpoints(vm))
            case ForgetVm(vm):
                self.vms.pop(vm, None)
                return Done()
            case ReadEdge():
                vms = (EdgeVm(vm, one.vni, one.inner_address, "", "", 1, self.endpoints(vm)) for vm, one in self.vms.items())
                return EdgeState(tuple(vms), {})
            case Ping():
                return Pong(0.0)
        raise NotFoundError(f"request {type(message).__name__}", "is not served", "report this as a defect")

    def endpoints(self, vm: VmId) -> tuple[Endpoint, ...]:
        """What a VM's ports became."""
        return tuple(Endpoint(PUBLIC_ADDRESS, port.public_port, port.protocol, port.guest_port) for port in self.vms[vm].publish)

    def _refuse_taken(self, wanted: DefineVm) -> None:
        taken = {(port.public_port, port.protocol): vm for vm, one in self.vms.items() if vm != wanted.vm for port in one.publish}
        for port in wanted.publish:
            if (port.public_port, port.protocol) in taken or port.public_port in self.foreign_ports:
                raise ConflictError(f"port {port.public_port}/{port.protocol.value}", "is taken", "choose another")
