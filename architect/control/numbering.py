"""Numbering: a new VM's VNI and inner address. Both go round, so that a number is not used again soon after its VM is gone."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

import msgspec

from architect.errors import CapacityError
from architect.model.ids import VNI_MAX, Vni

RESERVED_ADDRESSES = 10


class Numbers(msgspec.Struct, frozen=True):
    """A VM's numbers; `address_index` is where the next search begins."""

    vni: Vni
    address: str
    address_index: int


def next_numbers(
    network: str, last_vni: int, last_address_index: int, vnis_taken: Collection[int], addresses_taken: Collection[str]
) -> Numbers:
    """The next free VNI and address after the last ones given.

    The first `RESERVED_ADDRESSES` of the network and its last one stay free: gateway, name server, broadcast.

    Raises:
        CapacityError: the network has no free address.
    """
    vni = _next_free(last_vni, 1, VNI_MAX, vnis_taken)
    inner = ipaddress.IPv4Network(network)
    last_index = inner.num_addresses - 2
    taken = {int(ipaddress.IPv4Address(address)) - int(inner.network_address) for address in addresses_taken}
    index = _next_free(last_address_index, RESERVED_ADDRESSES, last_index, taken)
    if vni is None or index is None:
        raise CapacityError(f"network {network}", "has no free address", "remove VMs that are over, or use a larger inner_network")
    return Numbers(Vni(vni), str(inner[index]), index)


def _next_free(last: int, first: int, end: int, taken: Collection[int]) -> int | None:
    count = end - first + 1
    if count <= 0:
        return None
    start = last + 1 if first <= last + 1 <= end else first
    for step in range(min(count, len(taken) + 1)):
        candidate = first + (start - first + step) % count
        if candidate not in taken:
            return candidate
    return None
