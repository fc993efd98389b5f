"""A target that cannot go on with the VM is refused by the one thing that differs."""

from __future__ import annotations

import msgspec
import pytest

from architect.errors import IncompatibleError
from architect.migration.compatibility import check_target
from tests.migration.handover_values import facts, spec


def test_an_equal_host_fits() -> None:
    check_target(spec(), facts("a"), facts("b"))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"accelerator": "kvm"}, "kvm"),
        ({"qemu_version": "6.2.0"}, "6.2.0"),
        ({"kernel_sha256": "other"}, "kernel"),
        ({"initramfs_sha256": "other"}, "initramfs"),
        ({"underlay_mtu": 1300}, "1264"),
    ],
)
def test_a_host_that_differs_is_refused_by_name(changes: dict[str, object], word: str) -> None:
    with pytest.raises(IncompatibleError, match=word) as raised:
        check_target(spec(), facts("a"), facts("b", **changes))
    assert raised.value.thing == "host b"


def test_another_tsc_matters_under_kvm_only() -> None:
    slow = facts("b", tsc_khz=1_900_000)
    check_target(spec(), facts("a"), slow)
    kvm = msgspec.structs.replace(spec(), machine=msgspec.structs.replace(spec().machine, accelerator="kvm"))
    with pytest.raises(IncompatibleError, match="TSC"):
        check_target(kvm, facts("a"), msgspec.structs.replace(slow, accelerator="kvm"))


def test_a_newer_qemu_fits() -> None:
    check_target(spec(), facts("a"), facts("b", qemu_version="10.0.2"))
