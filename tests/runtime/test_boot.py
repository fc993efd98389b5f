"""Which boot this is."""

from __future__ import annotations

import uuid

from architect.runtime.boot import boot_id


def test_one_boot_has_one_id() -> None:
    assert boot_id() == boot_id() == str(uuid.UUID(boot_id()))
