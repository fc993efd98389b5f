"""Where everything of a local fabric is: addresses, names of namespaces and links, files. Values only.

A fabric has an index, and with it a /19 of 198.18.0.0/15 (RFC 2544, never routed in the wild), so that sixteen live side by side::

    198.18.0.0/19   fabric 0, slots of a /24 each
      slot 0   .1/30   internet router    .2/30  the machine (outside.address; `architect control` listens here)
               .17/28  internet router    .18/28 the edge's underlay address
               .32/28  public addresses, routed to the edge
      slot n   .1/24   internet router    .10/24 host n, in its own namespace

A fabric's id is 6 hex digits of its state folder's path: the same folder is always the same fabric, even if all files are lost.
Host numbers are never used twice (aws-2 stays dead), slots are.
"""

from __future__ import annotations

import hashlib
import os
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import msgspec

from architect.errors import CapacityError

POOL = IPv4Network("198.18.0.0/15")
FABRIC_PREFIX = 19
FABRICS_MAX = 1 << (FABRIC_PREFIX - POOL.prefixlen)
HOSTS_MAX = (1 << (24 - FABRIC_PREFIX)) - 1
PUBLIC_ADDRESS_COUNT = 1
NIC = "eth0"
UNDERLAY_MTU = 1500
METADATA_ADDRESS = "169.254.169.254"
METADATA_PORT = 80

CONTROL_PORT = 7400
EDGE_PORT = 7401
MIGRATION_PORT = 7402
EDGE_NAME = "edge-1"

REGIONS = {"aws": "aws-local-1", "gcp": "gcp-local-1", "azure": "azure-local-1"}
PROVIDERS = tuple(REGIONS)
NOTICE_S = {"aws": 120.0, "gcp": 30.0, "azure": 30.0}


class Link(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A veth between the internet router and somebody: addresses with their prefix length in common."""

    router_name: str
    router_address: IPv4Address
    inner_name: str
    inner_address: IPv4Address
    prefix: int


class FabricLayout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The addresses and kernel names of one fabric."""

    fabric: str
    index: int

    @property
    def network(self) -> IPv4Network:
        """All addresses of the fabric."""
        size = 1 << (32 - FABRIC_PREFIX)
        return IPv4Network((int(POOL.network_address) + self.index * size, FABRIC_PREFIX))

    @property
    def prefix(self) -> str:
        """What the names of its namespaces begin with."""
        return namespace_prefix(self.fabric)

    @property
    def internet_namespace(self) -> str:
        """The router's."""
        return f"{self.prefix}internet"

    @property
    def edge_namespace(self) -> str:
        """The edge's."""
        return f"{self.prefix}edge"

    def host_namespace(self, host: str) -> str:
        """A host's."""
        return f"{self.prefix}host-{host}"

    @property
    def machine_link(self) -> Link:
        """The machine's way into the internet; its end lies among the machine's own links, so its name says whose it is."""
        return self._link("m", f"arc{self.fabric}m", self._address(1), self._address(2), 30)

    @property
    def edge_link(self) -> Link:
        """The edge's underlay."""
        return self._link("e", NIC, self._address(17), self._address(18), 28)

    @property
    def public_network(self) -> IPv4Network:
        """Routed to the edge."""
        return IPv4Network((int(self._address(32)), 28))

    @property
    def public_addresses(self) -> tuple[str, ...]:
        """The edge's public addresses."""
        return tuple(str(self._address(33 + number)) for number in range(PUBLIC_ADDRESS_COUNT))

    def host_link(self, slot: int) -> Link:
        """The link of the host in a slot (1 to HOSTS_MAX)."""
        assert 1 <= slot <= HOSTS_MAX
        return self._link(f"h{slot}", NIC, self._address(slot * 256 + 1), self._address(slot * 256 + 10), 24)

    def _address(self, offset: int) -> IPv4Address:
        return self.network.network_address + offset

    def _link(self, end: str, inner_name: str, router: IPv4Address, inner: IPv4Address, prefix: int) -> Link:
        return Link(f"arc{self.fabric}{end}r", router, inner_name, inner, prefix)


class StateFolder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The files of one fabric, under its state folder."""

    root: Path

    @property
    def fabric(self) -> str:
        """The id that belongs to the folder."""
        return hashlib.sha256(str(self.root.resolve()).encode()).hexdigest()[:6]

    @property
    def record(self) -> Path:
        """What exists, as the supervisor last wrote it."""
        return self.root / "fabric.json"

    @property
    def options(self) -> Path:
        """What `architect up` asked for."""
        return self.root / "options.json"

    @property
    def local_socket(self) -> Path:
        """Where the supervisor listens."""
        return self.root / "local.sock"

    @property
    def rest_socket(self) -> Path:
        """Where the control plane serves the command line."""
        return self.root / "control.sock"

    @property
    def lock(self) -> Path:
        """Held by the supervisor as long as it runs."""
        return self.root / "supervisor.lock"

    @property
    def change_lock(self) -> Path:
        """Held by an `up` or `down`. Made by `up`, and stays: it tells that this folder is a fabric's."""
        return self.root / "up.lock"

    @property
    def logs(self) -> Path:
        """One file a process; survives `architect down`."""
        return self.root / "logs"

    @property
    def cache(self) -> Path:
        """What all fabrics of this machine share and may rebuild: guest kernel, initramfs, templates."""
        return machine_cache()

    @property
    def ownership(self) -> Path:
        """The ownership log, shared by the hosts."""
        return self.root / "ownership"

    @property
    def authority(self) -> Path:
        """The CA, key included."""
        return self.root / "ca"

    def role(self, name: str) -> Path:
        """The folder of `control` or `edge`: config.json, tls/ and its state."""
        return self.root / name

    def host(self, name: str) -> Path:
        """The folder of a host, gone with it: config.json, tls/ and state/."""
        return self.root / "hosts" / name

    @property
    def vanishing(self) -> tuple[Path, ...]:
        """What `architect down` removes."""
        folders = ("hosts", "control", "edge", "ownership", "ca")
        files = (self.record, self.options, self.local_socket, self.rest_socket, self.lock)
        return (*(self.root / folder for folder in folders), *files)


def machine_cache() -> Path:
    """The machine's cache folder; $ARCHITECT_CACHE moves it."""
    return Path(os.environ.get("ARCHITECT_CACHE", "/var/cache/architect"))


def state_folder(root: Path) -> StateFolder:
    """The files under `root`, wherever that leads to."""
    return StateFolder(root.resolve())


def namespace_prefix(fabric: str) -> str:
    """What the names of a fabric's namespaces begin with."""
    return f"arc-{fabric}-"


def fabric_mark(fabric: str) -> str:
    """In the environment of every process of a fabric, and of what it starts."""
    return f"ARCHITECT_FABRIC={fabric}"


def host_mark(fabric: str, host: str) -> str:
    """In the environment of a host's agent, and of what it starts."""
    return f"ARCHITECT_HOST={fabric}/{host}"


def free_slot(taken: set[int]) -> int:
    """The lowest slot that no host has.

    Raises:
        CapacityError: there is none.
    """
    for slot in range(1, HOSTS_MAX + 1):
        if slot not in taken:
            return slot
    raise CapacityError("local fabric", f"it has {HOSTS_MAX} hosts already", "remove one with `architect host rm`")


def free_index(networks: list[IPv4Network]) -> int:
    """The lowest fabric index whose addresses overlap none of these (the machine's routes).

    Raises:
        CapacityError: there is none.
    """
    for index in range(FABRICS_MAX):
        mine = FabricLayout("", index).network
        if not any(mine.overlaps(network) for network in networks):
            return index
    raise CapacityError("this machine", f"has {FABRICS_MAX} local fabrics, or routes into {POOL}", "take one down")
