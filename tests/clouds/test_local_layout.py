"""Where things of a local fabric are: no two overlap, names fit the kernel, ids belong to folders."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path

import pytest

from architect.clouds.local.layout import (
    FABRICS_MAX,
    HOSTS_MAX,
    POOL,
    FabricLayout,
    free_index,
    free_slot,
    state_folder,
)
from architect.errors import CapacityError

LINK_NAME_BYTES_MAX = 15


def test_fabrics_do_not_overlap_and_fill_the_pool() -> None:
    networks = [FabricLayout("00beef", index).network for index in range(FABRICS_MAX)]
    assert sum(network.num_addresses for network in networks) == POOL.num_addresses
    assert all(network.subnet_of(POOL) for network in networks)
    assert len(set(networks)) == FABRICS_MAX


@pytest.mark.parametrize("index", [0, FABRICS_MAX - 1])
def test_links_of_a_fabric_do_not_overlap_and_their_names_fit(index: int) -> None:
    layout = FabricLayout("00beef", index)
    links = [layout.machine_link, layout.edge_link, *(layout.host_link(slot) for slot in range(1, HOSTS_MAX + 1))]
    networks = [IPv4Network((int(link.inner_address), link.prefix), strict=False) for link in links] + [layout.public_network]
    for position, network in enumerate(networks):
        assert network.subnet_of(layout.network)
        assert not any(network.overlaps(other) for other in networks[position + 1 :])
    for link in links:
        assert link.router_address in IPv4Network((int(link.inner_address), link.prefix), strict=False)
        assert len(link.router_name) <= LINK_NAME_BYTES_MAX and len(link.inner_name) <= LINK_NAME_BYTES_MAX
    assert len({link.router_name for link in links}) == len(links)
    assert all(IPv4Network(address).subnet_of(layout.public_network) for address in layout.public_addresses)


def test_the_first_index_that_no_route_of_the_machine_meets_is_free() -> None:
    assert free_index([]) == 0
    assert free_index([FabricLayout("a", 0).network, IPv4Network("10.0.0.0/8")]) == 1
    assert free_index([IPv4Network("198.18.0.0/18")]) == 2
    with pytest.raises(CapacityError):
        free_index([POOL])


def test_the_lowest_slot_is_taken_and_the_last_one_is_the_last() -> None:
    assert free_slot(set()) == 1
    assert free_slot({1, 3}) == 2
    with pytest.raises(CapacityError):
        free_slot(set(range(1, HOSTS_MAX + 1)))


def test_a_folder_is_always_the_same_fabric(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real")
    (tmp_path / "real").mkdir()
    assert state_folder(link).fabric == state_folder(tmp_path / "real").fabric
    assert state_folder(tmp_path / "other").fabric != state_folder(tmp_path / "real").fabric
