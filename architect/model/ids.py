"""Names and ids: what a VM, a host and a move are called, and which words are accepted as such.

A VM's id is `vm-` and 12 hex digits; its name is the user's and unique among the VMs that exist. A VNI is the VM's number
in the tunnel header (24 bits) and in the edge's maps.
"""

from __future__ import annotations

import re
from typing import NewType

from architect.errors import UsageError

VmId = NewType("VmId", str)
HostName = NewType("HostName", str)
MigrationId = NewType("MigrationId", str)
Vni = NewType("Vni", int)

VNI_MAX = (1 << 24) - 1
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")


def vm_id(random_bytes: bytes) -> VmId:
    """A VM id from 6 random bytes."""
    assert len(random_bytes) == 6
    return VmId(f"vm-{random_bytes.hex()}")


def migration_id(random_bytes: bytes) -> MigrationId:
    """A move's id from 6 random bytes."""
    assert len(random_bytes) == 6
    return MigrationId(f"mig-{random_bytes.hex()}")


def check_name(text: str, what: str) -> str:
    """`text`, if it can be the name of a VM or a host: lower-case letters, digits, dots and dashes, 63 characters at most.

    Raises:
        UsageError: it cannot.
    """
    if _NAME.fullmatch(text) is None:
        raise UsageError(
            f"{what} {text!r}", "not a name", "use up to 63 of a-z, 0-9, '.' and '-', first and last a letter or digit"
        )
    return text
